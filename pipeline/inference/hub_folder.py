"""A trained model as a folder in the form of the Hugging Face Hub.

`config.json` and `preprocessor_config.json` say in the Hub's words what the model is and how its
clips are made; `README.md` is the model card. The weights carry the same facts, so that
`from_pretrained`, `vmp predict` and `vmp eval` read the folder as they read a single file.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from model import VideoMamba
from model.containers import FOLDER_WEIGHTS
from model.weights import write_durably
from pipeline.errors import ConfigError
from pipeline.inference.exported import Card, write_exported
from pipeline.inference.statistics import wilson_interval

CONFIG, PREPROCESSOR, MODEL_CARD = "config.json", "preprocessor_config.json", "README.md"


class Evidence(NamedTuple):
    """What is known about a model beside its weights."""

    data_digest: str | None
    """Digest of the manifest of the training shards."""
    step: int | None
    correct: int | None
    """Validation videos whose most probable class is their label, at the end of the run."""
    num_samples: int | None
    """Validation videos."""


def check_folder(out: Path) -> None:
    """Raise ConfigError when `out` holds something else than an exported folder."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"{out}: is a file without a suffix that names a format")
    if out.is_dir() and os.listdir(out) and not (out / FOLDER_WEIGHTS).is_file():
        raise ConfigError(f"{out}: holds other files; choose a folder that is new or empty")


def write_folder(out: Path, net: VideoMamba, card: Card, evidence: Evidence) -> None:
    """Write the folder; the weights come last, so that a folder with weights is whole.

    Raises ConfigError when it holds something else, WeightsError when it cannot be written.
    """
    check_folder(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / FOLDER_WEIGHTS).unlink(missing_ok=True)
    for name, content in (
        (CONFIG, _json(_config(net, card))),
        (PREPROCESSOR, _json(_preprocessor(net, card))),
        (MODEL_CARD, _model_card(net, card, evidence)),
    ):
        write_durably(out / name, content.encode())
    write_exported(out / FOLDER_WEIGHTS, net, card)


def _json(content: dict[str, object]) -> str:
    return json.dumps(content, indent=2) + "\n"


def _config(net: VideoMamba, card: Card) -> dict[str, object]:
    names = dict(enumerate(card.classes))
    return {
        "model_type": "videomambapro",
        "architectures": ["VideoMamba"],
        **net.config.model_dump(mode="json"),
        "id2label": names,
        "label2id": {label: number for number, label in names.items()},
    }


def _preprocessor(net: VideoMamba, card: Card) -> dict[str, object]:
    size = net.config.img_size
    return {
        "num_frames": net.config.num_frames,
        "frame_sampling": card.sampling,
        "frame_stride": card.stride,
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": card.mean,
        "image_std": card.std,
        "clips_per_video": card.clips,
        "crops_per_clip": card.crops,
    }


def _model_card(net: VideoMamba, card: Card, evidence: Evidence) -> str:
    config = net.config
    parameters = sum(parameter.numel() for parameter in net.parameters())
    lines = [
        "---",
        "library_name: videomambapro",
        "pipeline_tag: video-classification",
        "---",
        "",
        f"# {card.name}",
        "",
        f"A video classifier with {parameters:,} parameters: {config.depth} blocks of width "
        f"{config.embed_dim}, {config.num_frames} frames of {config.img_size} pixels, "
        f"{config.num_classes} classes.",
        "",
        "| property | value |",
        "|---|---|",
        f"| layout, start, mask | {config.layout}, {config.initial_state}, "
        f"{'on' if config.mask_backward else 'off'} |",
        f"| sampling | {card.sampling}, {card.clips} clips x {card.crops} crops per video |",
        f"| trained steps | {_or_unknown(evidence.step)} |",
        f"| digest of the training shards | {_or_unknown(evidence.data_digest)} |",
        f"| top-1 on the validation split | {_accuracy(evidence)} |",
        "",
        "## Fidelity",
        "",
        _fidelity(net),
        "",
        "## Use",
        "",
        "```python",
        "from videomambapro import Predictor",
        "",
        'Predictor.load("this folder")("video.mp4")',
        "```",
        "",
    ]
    return "\n".join(lines)


def _or_unknown(value: object) -> str:
    return "unknown" if value is None else str(value)


def _accuracy(evidence: Evidence) -> str:
    if evidence.correct is None or not evidence.num_samples:
        return "unknown"
    low, high = wilson_interval(evidence.correct, evidence.num_samples)
    return (
        f"{evidence.correct / evidence.num_samples:.1%} of {evidence.num_samples} videos "
        f"(95 % interval {low:.1%} to {high:.1%}); that split also chose the checkpoint if one "
        "was chosen"
    )


def _fidelity(net: VideoMamba) -> str:
    config = net.config
    if config.direction == "forward":
        return "The scan runs forward only; no paper of the family describes such a model."
    changes = [
        *(["the masked read-out of the backward scan"] if config.mask_backward else []),
        *(["states that start at the first token"] if config.initial_state != "zero" else []),
    ]
    if not changes:
        return "The network is VideoMamba (arXiv 2403.06977), without VideoMambaPro's changes."
    return (
        f"The network is VideoMambaPro (arXiv 2406.19006) with {' and '.join(changes)}, and the "
        f"{config.layout} layout of the projections. No accuracy of the paper has been reproduced "
        "by videomambapro."
    )
