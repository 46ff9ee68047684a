"""The results of an evaluation: what they are, and the directory that holds them.

evaluation.json   `Evaluation`, with the sha256 of the table; written last
videos.parquet    a row per video, in the order of the shards: key, label, prediction, logits
*.png             see `pipeline.inference.plots`
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.invalid import first_problem
from pipeline.errors import ConfigError
from pipeline.inference import statistics
from pipeline.inference.evaluate import Outcomes, Predictions, outcomes, summarize
from pipeline.inference.statistics import Interval, ReliabilityBin
from pipeline.rundir import durable

JSON_FILE = "evaluation.json"
TABLE_FILE = "videos.parquet"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class Views(_Frozen):
    """Everything that decides which pixels of a video the model sees."""

    clips: int
    crops: int
    sampling: str
    stride: int
    num_frames: int
    img_size: int
    shuffle_frames: bool
    seed: int
    """Seed of the frame order; it matters with `shuffle_frames` only."""


class ClassResult(_Frozen):
    name: str
    videos: int
    accuracy: float | None
    """None for a class without videos."""


class Confusion(_Frozen):
    label: str
    predicted: str
    videos: int


class Setting(_Frozen):
    """What an evaluation is of."""

    version: Literal[1] = 1
    weights: str
    """The file or checkpoint that was evaluated."""
    data: str
    split: str
    is_test: bool
    """Whether the split is test data, on which no checkpoint may be chosen."""
    data_digest: str
    """Digest of the samples, their order and their classes."""
    views: Views
    precision: str
    classes: tuple[str, ...]


class Evaluation(Setting):
    """What evaluation.json holds."""

    num_videos: int
    unreadable: tuple[str, ...] = ()
    """Keys of the videos that could not be read, which no figure counts."""
    top1: float
    top1_interval: Interval
    """Bootstrap over the videos, 95 %, from seed 0."""
    top5: float
    loss: float | None
    """None where it is not finite."""
    mean_class_accuracy: float | None
    """Mean of the accuracies of the classes that have videos."""
    calibration_error: float
    """Expected calibration error, over 15 bins of equal width."""
    per_class: tuple[ClassResult, ...]
    calibration: tuple[ReliabilityBin, ...]
    confusions: tuple[Confusion, ...]
    """Errors by frequency: label, wrong prediction and number of videos."""
    table_sha256: str = Field(pattern=r"^([0-9a-f]{64})?$", default="")


class Results(NamedTuple):
    """An evaluation with its predictions."""

    evaluation: Evaluation
    keys: tuple[str, ...]
    """Keys of the videos, in the order of the shards."""
    label: NDArray[np.int64]
    logits: NDArray[np.float32]
    """(videos, classes): logarithm of the class probabilities averaged over the views."""

    @property
    def outcomes(self) -> Outcomes:
        return outcomes(torch.from_numpy(self.label), torch.from_numpy(self.logits))

    @property
    def predicted(self) -> NDArray[np.int64]:
        """(videos,) most probable class."""
        return torch.from_numpy(self.logits).argmax(1).numpy()

    @property
    def confusion(self) -> NDArray[np.int64]:
        """(classes, classes) videos per label and prediction."""
        return statistics.confusion(self.label, self.predicted, len(self.evaluation.classes))


def results_of(
    setting: Setting, predictions: Predictions, keys: tuple[str, ...], unreadable: tuple[str, ...]
) -> Results:
    """Compute every figure. `predictions` are in the order of the shards, as are `keys`."""
    label, logits = predictions.label.numpy(), predictions.logits.numpy()
    found = outcomes(predictions.label, predictions.logits)
    result = summarize(found)
    predicted = predictions.logits.argmax(1)
    matrix = statistics.confusion(label, predicted.numpy(), len(setting.classes))
    per_class = statistics.per_class_accuracy(matrix)
    confidence = predictions.logits.double().exp().amax(1).numpy()
    bins = statistics.reliability(confidence, found.top1)
    evaluation = Evaluation(
        **dict(setting),
        num_videos=result.num_samples,
        unreadable=unreadable,
        top1=result.top1,
        top1_interval=statistics.bootstrap_accuracy(found.top1),
        top5=result.top5,
        loss=result.loss if np.isfinite(result.loss) else None,
        mean_class_accuracy=float(np.nanmean(per_class)) if len(label) else None,
        calibration_error=statistics.expected_calibration_error(bins),
        per_class=tuple(
            ClassResult(
                name=name, videos=int(videos), accuracy=None if np.isnan(share) else float(share)
            )
            for name, videos, share in zip(setting.classes, matrix.sum(1), per_class, strict=True)
        ),
        calibration=tuple(bins),
        confusions=_confusions(matrix, setting.classes),
    )
    return Results(evaluation, keys, label, logits)


def _confusions(matrix: NDArray[np.int64], classes: tuple[str, ...]) -> tuple[Confusion, ...]:
    errors = matrix - np.diag(matrix.diagonal())
    rows, columns = errors.nonzero()
    order = np.argsort(-errors[rows, columns], kind="stable")
    return tuple(
        Confusion(label=classes[i], predicted=classes[j], videos=int(errors[i, j]))
        for i, j in zip(rows[order], columns[order], strict=True)
    )


def write_results(out: Path, results: Results) -> None:
    """Write the table and, last, the JSON to the directory `out`.

    Raises ConfigError when it cannot be written.
    """
    correct = results.predicted == results.label
    table = pa.table(
        {
            "key": pa.array(results.keys, pa.string()),
            "label": pa.array(results.label, pa.int32()),
            "predicted": pa.array(results.predicted, pa.int32()),
            "correct": pa.array(correct),
            "logits": pa.FixedSizeListArray.from_arrays(
                pa.array(results.logits.ravel()), len(results.evaluation.classes)
            ),
        }
    )
    try:
        out.mkdir(parents=True, exist_ok=True)
        (out / JSON_FILE).unlink(missing_ok=True)  # it vouches for the table
        temporary = out / f".{TABLE_FILE}.tmp"
        pq.write_table(table, temporary)
        durable.sync_file(temporary)
        durable.rename(temporary, out / TABLE_FILE)
        digest = hashlib.sha256((out / TABLE_FILE).read_bytes()).hexdigest()
        evaluation = results.evaluation.model_copy(update={"table_sha256": digest})
        durable.write_json(out / JSON_FILE, evaluation.model_dump(mode="json"))
    except OSError as error:
        raise ConfigError(f"{out}: cannot be written: {error.strerror or error}") from error


def read_results(out: Path) -> Results:
    """Read what `write_results` wrote.

    Raises ConfigError when a file is missing, damaged, or not of the other.
    """
    try:
        evaluation = Evaluation.model_validate_json((out / JSON_FILE).read_bytes())
        content = (out / TABLE_FILE).read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{out}: not an evaluation ({Path(str(error.filename)).name}: {error.strerror}); "
            f"`vmp eval WEIGHTS DATA --out {out}` makes one"
        ) from error
    except ValidationError as error:
        problem = first_problem(error, Evaluation, whole="content")
        raise ConfigError(f"{out / JSON_FILE}: not an evaluation: {problem}") from error
    if hashlib.sha256(content).hexdigest() != evaluation.table_sha256:
        raise ConfigError(
            f"{out / TABLE_FILE}: not the table that {JSON_FILE} names (sha256 differs); "
            "evaluate again"
        )
    try:
        table = pq.read_table(pa.BufferReader(content))
        flat = table["logits"].combine_chunks().flatten()
        logits = flat.to_numpy().astype(np.float32).reshape(len(table), len(evaluation.classes))
        label = table["label"].to_numpy().astype(np.int64)
        keys = tuple(table["key"].to_pylist())
    except (pa.ArrowException, KeyError, ValueError, AttributeError) as error:
        reason = " ".join(str(error).split())[:300]
        raise ConfigError(f"{out / TABLE_FILE}: cannot be read: {reason}") from error
    return Results(evaluation, keys, label, logits)
