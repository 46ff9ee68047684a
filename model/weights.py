"""This project's weight files: tensors with the model's configuration, as safetensors or .pth."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

import torch
from safetensors.torch import save
from torch import Tensor

from model.backbone import VideoMamba
from model.containers import CONFIG_METADATA, KEPT, Container, read_container
from model.errors import WeightsError


def save_model(
    path: str | Path,
    net: VideoMamba,
    metadata: Mapping[str, str] | None = None,
    kept: Mapping[str, Tensor] | None = None,
) -> None:
    """Writes parameters and configuration durably: temporary name, fsync, rename, fsync.

    A .pth file is `{"model": state_dict, "model_config": JSON, **metadata}`, which torch.load reads
    with weights_only=True; any other name gets safetensors. Tensors of `kept` lie beside the
    parameters, under names that no model has.
    """
    path = Path(path)
    metadata = {**(metadata or {}), CONFIG_METADATA: net.config.model_dump_json()}
    beside = {f"{KEPT}{key}": value for key, value in (kept or {}).items()}
    tensors = {
        key: value.detach().cpu().contiguous()
        for key, value in {**net.state_dict(), **beside}.items()
    }
    if path.suffix == ".pth":
        write_durably(path, torch_bytes({"model": tensors, **metadata}))
    else:
        write_durably(path, save(tensors, metadata=metadata))


def torch_bytes(content: object) -> bytes:
    """What torch.save writes for `content`."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


def write_durably(path: Path, content: bytes) -> None:
    """Replaces `path` by `content`. Raises WeightsError when it cannot be written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise WeightsError(f"{path}: cannot be written ({error.strerror})") from error
    directory = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def load_model(path: str | Path) -> VideoMamba:
    """The model that `save_model` wrote, in evaluation mode, on the CPU.

    Raises WeightsError when the file is damaged, foreign, or lacks a key of its own model.
    """
    return model_of(read_container(Path(path)), Path(path))


def model_of(container: Container, path: Path) -> VideoMamba:
    """The model in a container that `save_model` wrote, as `load_model` returns it."""
    tensors, config = container.tensors, container.config
    if config is None:
        raise WeightsError(
            f"{path}: carries no model configuration; bring it in with `vmp convert` first"
        )
    if "head.weight" not in tensors:  # a backbone that masked pre-training left
        raise WeightsError(f"{path}: has no classification head: train one with init_from={path}")
    with torch.device("meta"):
        net = VideoMamba(config)
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[-1].strip(), 200)
        raise WeightsError(f"{path}: does not match its own configuration ({reason})") from error
    return net.requires_grad_().eval()
