"""This project's weight files: safetensors with the model's configuration in the metadata."""

from __future__ import annotations

import os
from pathlib import Path
from textwrap import shorten

import torch
from safetensors.torch import save

from model.backbone import VideoMamba
from model.containers import CONFIG_METADATA, read_container
from model.errors import WeightsError


def save_model(path: str | Path, net: VideoMamba) -> None:
    """Writes parameters and configuration durably: temporary name, fsync, rename, fsync."""
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    content = save(tensors, metadata={CONFIG_METADATA: net.config.model_dump_json()})
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
    path = Path(path)
    tensors, config = read_container(path)
    if config is None:
        raise WeightsError(
            f"{path}: carries no model configuration; bring it in with `vmp convert` first"
        )
    with torch.device("meta"):
        net = VideoMamba(config)
    try:
        net.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        reason = shorten(str(error).splitlines()[-1].strip(), 200)
        raise WeightsError(f"{path}: does not match its own configuration ({reason})") from error
    return net.requires_grad_().eval()
