"""This project's weight files: tensors with the model's configuration, as safetensors or .pth."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping
from pathlib import Path
from textwrap import shorten

import torch
from safetensors.torch import save

from model.backbone import VideoMamba
from model.containers import CONFIG_METADATA, read_container
from model.errors import WeightsError


def save_model(
    path: str | Path, net: VideoMamba, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes parameters and configuration durably: temporary name, fsync, rename, fsync.

    A .pth file is `{"model": state_dict, "model_config": JSON, **metadata}`, which torch.load reads
    with weights_only=True; any other name gets safetensors.
    """
    path = Path(path)
    metadata = {**(metadata or {}), CONFIG_METADATA: net.config.model_dump_json()}
    tensors = {key: value.detach().cpu().contiguous() for key, value in net.state_dict().items()}
    if path.suffix == ".pth":
        buffer = io.BytesIO()
        torch.save({"model": tensors, **metadata}, buffer)
        content = buffer.getvalue()
    else:
        content = save(tensors, metadata=metadata)
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
