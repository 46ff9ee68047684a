"""Reads tensors out of other people's checkpoint files without running their code."""

from __future__ import annotations

import argparse
import json
import pickle
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from model.config import ModelConfig, resolve_config
from model.errors import WeightsError

CONFIG_METADATA = "model_config"
_WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
# What torch's unpickler was seen to raise on 3000 damaged files; it interprets bytes as it goes.
_DAMAGED = (
    pickle.UnpicklingError,
    EOFError,
    OSError,
    RuntimeError,
    LookupError,
    ValueError,
    TypeError,
    AttributeError,
    AssertionError,
    struct.error,
)
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.")


class Container(NamedTuple):
    """Tensors by bare key, and the model's configuration where the file carries one."""

    tensors: dict[str, Tensor]
    config: ModelConfig | None


def read_container(path: Path) -> Container:
    """Reads a safetensors file or a torch checkpoint: bare, wrapped, or of a training run.

    Pickles go through torch's restricted unpickler; beyond tensors and plain containers only
    argparse.Namespace, which training checkpoints carry, is admitted.
    Raises WeightsError when the file is missing, damaged, hostile or holds no weights.
    """
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    content = _read_torch(path)
    stored = content.get(CONFIG_METADATA) if isinstance(content, Mapping) else None
    return Container(_strip_prefixes(_unwrap(content, path), path), _config(stored, path))


def read_metadata(path: Path, key: str) -> str | None:
    """A text that `save_model` was given to keep beside the weights; None when there is none.

    Raises WeightsError as `read_container` does.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get(key)
        except (OSError, SafetensorError) as error:
            raise WeightsError(f"{path}: damaged safetensors file ({error})") from error
    content = _read_torch(path)
    text = content.get(key) if isinstance(content, Mapping) else None
    return text if isinstance(text, str) else None


def _read_torch(path: Path) -> Any:
    try:
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        lines = f"{type(error).__name__}: {error}".strip().splitlines()
        reason = next((line.strip() for line in lines if "GLOBAL" in line), lines[0])
        raise WeightsError(
            f"{path}: not loaded, as it is damaged or holds more than tensors ({reason}); "
            "re-save it as a plain state_dict if you trust it"
        ) from error


def _read_safetensors(path: Path) -> Container:
    try:
        with safe_open(path, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a dict
            stored = (file.metadata() or {}).get(CONFIG_METADATA)
    except SafetensorError as error:
        raise WeightsError(f"{path}: damaged safetensors file ({error})") from error
    if stored is None:
        return Container(_strip_prefixes(tensors, path), None)
    return Container(tensors, _config(stored, path))


def _config(stored: Any, path: Path) -> ModelConfig | None:
    """Of a file that `save_model` wrote."""
    if stored is None:
        return None
    try:
        fields = json.loads(stored)
    except (json.JSONDecodeError, TypeError) as error:
        raise WeightsError(f"{path}: its {CONFIG_METADATA} metadata is not JSON") from error
    return resolve_config(ModelConfig(), **fields)


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    candidates = [content]
    if isinstance(content, Mapping):
        candidates = [content[key] for key in _WRAPPERS if key in content] + candidates
    for candidate in candidates:
        if _is_state_dict(candidate):
            return dict(candidate)
    found = sorted(map(str, content)) if isinstance(content, Mapping) else type(content).__name__
    raise WeightsError(
        f"{path}: holds no state_dict; looked at the top level and under "
        f"{', '.join(_WRAPPERS)}, found {found}"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _strip_prefixes(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    bare: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name in bare:
            raise WeightsError(
                f"{path}: two tensors are named '{name}' once prefixes such as "
                f"'{_PREFIXES[0]}' are removed: keep one of them"
            )
        bare[name] = tensor
    return bare
