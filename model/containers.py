"""Reads tensors out of other people's checkpoint files without running their code."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor, nn

from model.config import ModelConfig, parse_config
from model.errors import ModelConfigError, WeightsError, brief
from model.flops import count_parameters

CONFIG_METADATA = "model_config"
_WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
    tensors = _bare_tensors(_unwrap(content, path), path)
    stored = content.get(CONFIG_METADATA) if isinstance(content, Mapping) else None
    # `save_model` stores a string; other checkpoints may keep something else under that name.
    config = _config(stored, tensors, path) if isinstance(stored, str) else None
    return Container(tensors, config)


def read_metadata(path: Path, key: str) -> str | None:
    """The text under `key` that `save_model` stored beside the weights; None when there is none.

    Raises WeightsError as `read_container` does.
    """
    if path.suffix == ".safetensors":
        try:
            with safe_open(path, framework="pt") as file:
                return (file.metadata() or {}).get(key)
        except Exception as error:  # safetensors raises its own types, and Python's, for damage
            raise WeightsError(f"{path}: damaged safetensors file ({brief(error)})") from error
    content = _read_torch(path)
    text = content.get(key) if isinstance(content, Mapping) else None
    return text if isinstance(text, str) else None


def _read_torch(path: Path) -> Any:
    try:
        _refuse_inflation(path)
        with torch.serialization.safe_globals([argparse.Namespace]):
            return torch.load(path, map_location="cpu", weights_only=True)
    # Torch's unpickler interprets the bytes as it goes: a damaged file can raise anything.
    except Exception as error:
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
    except Exception as error:  # a dtype of its own, no permission, a damaged header
        raise WeightsError(f"{path}: damaged safetensors file ({brief(error)})") from error
    tensors = _bare_tensors(tensors, path)
    if stored is None:
        return Container(tensors, None)
    return Container(tensors, _config(stored, tensors, path))


def _config(stored: str, tensors: dict[str, Tensor], path: Path) -> ModelConfig:
    """The configuration in a file that `save_model` wrote."""
    try:
        config = parse_config(stored)
    except ModelConfigError as error:
        raise WeightsError(f"{path}: its {CONFIG_METADATA} metadata: {error}") from error
    described, held = count_parameters(config), sum(map(Tensor.numel, tensors.values()))
    # The factor leaves room for a missing key, which a later check names. Only a hostile file
    # exceeds it.
    if described > 2 * held:
        raise WeightsError(
            f"{path}: does not match its own configuration ({CONFIG_METADATA} describes "
            f"{described:,} parameters, the file holds {held:,})"
        )
    return config


def _refuse_inflation(path: Path) -> None:
    """Raises ValueError for an archive that would fill the memory: torch stores uncompressed."""
    if not zipfile.is_zipfile(path):
        return
    with zipfile.ZipFile(path) as archive:
        unpacked = sum(entry.file_size for entry in archive.infolist())
    if unpacked > path.stat().st_size:
        raise ValueError(f"a compressed archive, which unpacks to {unpacked:,} bytes")


def _unwrap(content: Any, path: Path) -> dict[str, Tensor]:
    candidates = [content]
    if isinstance(content, Mapping):
        candidates = [content[key] for key in _WRAPPERS if key in content] + candidates
    for candidate in candidates:
        if _is_state_dict(candidate):
            return dict(candidate)
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        keys = ", ".join(brief(key) for key in islice(content, 5))
        found = f"{len(content)} keys: {keys}{', ...' if len(content) > 5 else ''}"
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


def _bare_tensors(tensors: dict[str, Tensor], path: Path) -> dict[str, Tensor]:
    """`tensors` by their names without wrappers' prefixes, each one proved to be plain numbers."""
    bare: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = key
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name in bare:
            raise WeightsError(
                f"{path}: two tensors are named {brief(name)} once prefixes such as "
                f"'{_PREFIXES[0]}' are removed: keep one of them"
            )
        if fault := _fault(tensor):
            raise WeightsError(
                f"{path}: {brief(name)} {fault}; weights are dense, finite, real numbers"
            )
        bare[name] = tensor
    return bare


def _fault(tensor: Tensor) -> str | None:
    """Why a tensor cannot be a weight, or None."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return f"is {brief(str(tensor.layout))}, not dense"
    if tensor.is_meta:
        return "has a shape and no values"
    if not tensor.numel():
        return f"is empty, of shape {tuple(tensor.shape)}"
    if tensor.dtype not in _FLOATS:
        return f"has dtype {tensor.dtype}"
    # A stride of zero repeats one stored number, so a few bytes could claim terabytes.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} numbers and stores fewer"
    # The model computes in float32, in which 1e300 is infinite.
    if not tensor.float().isfinite().all():
        return "holds NaN or infinite numbers"
    return None
