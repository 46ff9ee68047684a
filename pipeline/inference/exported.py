"""Exported weights, with all that their use requires, in one .safetensors or .pth file.

Besides the tensors and the `ModelConfig`, the file holds a `Card` with the classes and the making
of clips. It does not reveal where the run or its data were.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from model import VideoMamba, save_model
from model.convert import open_whole
from model.invalid import first_problem
from pipeline.config import RunConfig
from pipeline.data.config import Positive
from pipeline.errors import ConfigError

CARD_METADATA = "videomambapro"
WEIGHTS_SUFFIXES = (".safetensors", ".pth")
SUFFIXES = (*WEIGHTS_SUFFIXES, ".pt2", ".onnx")


class Card(BaseModel):
    """The classes that the weights distinguish, and how their clips must be made."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)

    version: Literal[1] = 1
    name: str
    """Name of the run."""
    classes: tuple[str, ...]
    """Class names, in the order of the rows of the classification head; empty if nobody knows."""
    sampling: Literal["tsn", "dense", "segment"]
    stride: int = Field(ge=1, le=10_000)
    mean: tuple[FiniteFloat, FiniteFloat, FiniteFloat]
    std: tuple[Positive, Positive, Positive]
    clips: int = Field(ge=1, le=1000)
    """Temporal views per video."""
    crops: Literal[1, 3]
    """Spatial views per clip."""
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    """Number format of the run's computation, see `engine.precision`."""

    @classmethod
    def of(cls, config: RunConfig, classes: tuple[str, ...]) -> Card:
        data = config.data.model_dump(include={"sampling", "stride", "mean", "std"})
        views = config.eval.model_dump(include={"clips", "crops"})
        own = {"name": config.name, "classes": classes, "precision": config.engine.precision}
        return cls.model_validate(own | data | views)

    def tree(self, model: dict[str, Any]) -> dict[str, Any]:
        """Return a configuration as read from YAML, for weights of a `model` section."""
        data = self.model_dump(mode="json", include={"sampling", "stride", "mean", "std"})
        views = self.model_dump(mode="json", include={"clips", "crops"})
        return {
            "name": self.name,
            "model": model,
            "data": {"train": ".", **data},
            "eval": views,
            "engine": {"precision": self.precision},
        }


def check_suffix(path: Path) -> None:
    """Raise ConfigError if the suffix names a format that cannot be written."""
    if path.suffix and path.suffix not in SUFFIXES:
        raise ConfigError(
            f"{path}: cannot be written; choose {', '.join(SUFFIXES)}, or a name without a suffix "
            "for a Hugging Face folder"
        )


def write_exported(path: Path, net: VideoMamba, card: Card) -> None:
    """Write weights and card to `path`, a .safetensors or .pth file.

    Raises WeightsError when the file cannot be written.
    """
    save_model(path, net, {CARD_METADATA: card.model_dump_json()})


def read_exported(path: Path) -> tuple[VideoMamba, Card | None]:
    """Read weights and card from `path`; the model is on the CPU.

    A converted or released file has no card.
    Raises WeightsError when the file has no valid weights, and ConfigError when the card is
    invalid.
    """
    net, metadata = open_whole(path)
    card = card_of(metadata, path)
    if card is not None and card.classes and len(card.classes) != net.config.num_classes:
        raise ConfigError(
            f"{path}: names {len(card.classes)} classes, its head has {net.config.num_classes}"
        )
    return net, card


def card_of(metadata: Mapping[str, str], path: Path) -> Card | None:
    """Read the card among the texts of a file; None when it has none.

    Raises ConfigError, which names `path`, for an invalid card.
    """
    text = metadata.get(CARD_METADATA)
    if text is None:
        return None
    try:
        return Card.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, Card, whole="content")
        raise ConfigError(f"{path}: {CARD_METADATA} metadata: {problem}") from error
