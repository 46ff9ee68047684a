"""Results of an evaluation that was never made, for tests of what is done with results."""

from __future__ import annotations

import torch

from pipeline.inference.evaluate import Predictions
from pipeline.inference.results import Results, Setting, Views, results_of

VIEWS = Views(
    clips=2, crops=3, sampling="tsn", stride=4,
    num_frames=8, img_size=32, shuffle_frames=False, seed=0,
)  # fmt: skip


def made_results(
    label: list[int],
    predicted: list[int],
    *,
    num_classes: int = 3,
    sure: float = 3.0,
    **changed: object,
) -> Results:
    """Results in which video i of class label[i] is taken for predicted[i]."""
    logits = torch.full((len(label), num_classes), 0.0)
    logits[torch.arange(len(label)), torch.tensor(predicted, dtype=torch.int64)] = sure
    fields = {
        "weights": "runs/x/checkpoints/step-00000001", "data": "shards", "split": "val",
        "is_test": False, "data_digest": "d" * 64, "views": VIEWS, "precision": "fp32",
        "classes": tuple(f"class{number}" for number in range(num_classes)),
    }  # fmt: skip
    predictions = Predictions(
        torch.arange(len(label)), torch.tensor(label, dtype=torch.int64), logits.log_softmax(1)
    )
    keys = tuple(f"{number:016x}" for number in range(len(label)))
    return results_of(Setting(**(fields | changed)), predictions, keys, ())
