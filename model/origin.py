"""The way back from a converted file to the file that it was made from, bit for bit.

A converted file records every tensor of its original: which parameter holds it, or that it was kept
beside the parameters, as a teacher or a head of another training stage can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from pydantic import BaseModel, ConfigDict, ValidationError
from safetensors.torch import save
from torch import Tensor

from model.containers import Container, no_number, read_container
from model.errors import WeightsError, brief
from model.invalid import first_problem
from model.key_report import KeyReport
from model.weights import torch_bytes, write_durably

ORIGIN_METADATA = "origin"


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class OriginKey(_Record):
    """One tensor of the original file."""

    parameter: str | None
    """Parameter that holds its values; None when they were kept, or left out."""
    dtype: str
    shape: tuple[int, ...]


class Origin(_Record):
    """The original file of a conversion."""

    wrapper: str | None
    """Key of the mapping in which the tensors lay; None at the top level."""
    keys: dict[str, OriginKey]


class Trace(NamedTuple):
    """What a conversion adds to its file so that there is a way back."""

    origin: Origin
    rest: dict[str, Tensor]
    """Tensors of the original that no parameter holds exactly, by their key in it."""


def trace(source: Container, parameters: Mapping[str, Tensor], report: KeyReport) -> Trace:
    """Finds, for every tensor of `source`, the parameter from which it can be restored exactly."""
    targets = {entry.source: entry.target for entry in report.of("loaded")}
    renamed = {entry.source: entry.target for entry in report.of("renamed")}
    keys: dict[str, OriginKey] = {}
    rest: dict[str, Tensor] = {}
    for name, key in source.names.items():
        tensor = source.tensors[name]
        # An image's patch weights are reported as resized, and may lack only the axis of time.
        parameter = renamed.get(name) or targets.get(name) or name
        held = parameters.get(parameter)
        exact = held is not None and _restored(held, tensor.dtype, tensor.shape, tensor)
        if not exact:
            rest[key] = tensor
        keys[key] = OriginKey(
            parameter=parameter if exact else None,
            dtype=str(tensor.dtype).removeprefix("torch."),
            shape=tuple(tensor.shape),
        )
    return Trace(Origin(wrapper=source.wrapper, keys=keys), rest)


def _restored(held: Tensor, dtype: torch.dtype, shape: torch.Size, tensor: Tensor) -> bool:
    if held.numel() != tensor.numel():
        return False
    return torch.equal(held.detach().reshape(shape).to(dtype), tensor)


def refuse_unkeepable(rest: Mapping[str, Tensor], source: Path) -> None:
    """Raises WeightsError for tensors that are more, or less, than the numbers they store."""
    for key, tensor in rest.items():
        if fault := no_number(tensor):
            raise WeightsError(f"{source}: {brief(key)} {fault}; convert without keeping the rest")


def restore(path: Path, out: Path) -> int:
    """Writes the original of the converted file `path` to `out`, and returns its tensor count.

    The tensors, their keys, dtypes and wrapper are those of the original. What a training
    checkpoint holds besides, such as its optimizer, is not.
    Raises WeightsError when `path` is no converted file, or lacks tensors of the original.
    """
    container = read_container(path)
    origin = _origin(container, path)
    tensors = {key: _original(container, key, entry, path) for key, entry in origin.keys.items()}
    if out.suffix == ".safetensors":
        if origin.wrapper is not None:
            raise WeightsError(
                f"{out}: the original of {path} wraps its tensors in '{origin.wrapper}', which "
                "safetensors cannot: choose a name in .pth"
            )
        write_durably(out, save(tensors, metadata={"format": "pt"}))
    else:
        content = tensors if origin.wrapper is None else {origin.wrapper: tensors}
        write_durably(out, torch_bytes(content))
    return len(tensors)


def _origin(container: Container, path: Path) -> Origin:
    text = container.metadata.get(ORIGIN_METADATA)
    if text is None:
        raise WeightsError(
            f"{path}: does not say what it was converted from: take a file of `vmp convert`"
        )
    try:
        return Origin.model_validate_json(text)
    except ValidationError as error:
        problem = first_problem(error, Origin, whole="content")
        raise WeightsError(f"{path}: its {ORIGIN_METADATA} metadata: {problem}") from error


def _original(container: Container, key: str, entry: OriginKey, path: Path) -> Tensor:
    tensor = container.kept.get(key)
    if tensor is None and entry.parameter is not None:
        tensor = container.tensors.get(entry.parameter)
    if tensor is None:
        raise WeightsError(
            f"{path}: {brief(key)} of its original was not kept: convert that again with "
            "--keep-rest"
        )
    dtype = getattr(torch, entry.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise WeightsError(f"{path}: its {ORIGIN_METADATA} metadata: no dtype {brief(entry.dtype)}")
    try:
        return tensor.reshape(entry.shape).to(dtype).contiguous()
    except (RuntimeError, ValueError) as error:
        raise WeightsError(
            f"{path}: {brief(key)} has {tensor.numel():,} numbers, its original had the shape "
            f"{brief(entry.shape)}"
        ) from error
