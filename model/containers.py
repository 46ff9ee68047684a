"""Reads tensors out of other people's checkpoint files without running their code."""

from __future__ import annotations

import argparse
import re
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
FOREIGN = re.compile(
    r"(distill_head|clip_decoder|clip_pos_embed|clip_img_pos_embed|mask_token|pool_norm|clip_teacher"
    r"|text_encoder|vision_proj|text_proj|itm_head|temp)(\.|$)"
)
"""Keys of the heads, decoders and companions that other training stages put beside the model."""
KEPT = "origin/"
"""Prefix of the tensors that `convert` keeps for the way back; no model reads them."""
FOLDER_WEIGHTS = "model.safetensors"
"""The weights in a folder in the form of the Hugging Face Hub."""
_WRAPPERS = ("model", "module", "state_dict", "model_state_dict")
_EMA_WRAPPERS = ("model_ema", "state_dict_ema", "ema")
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_PREFIXES = ("module.", "_orig_mod.", "model.", "backbone.", "encoder.", "vision_encoder.")


class Container(NamedTuple):
    """What a file of weights holds."""

    tensors: dict[str, Tensor]
    """Tensors by bare key."""
    config: ModelConfig | None
    """The model's configuration, where the file carries one."""
    metadata: dict[str, str]
    """Texts beside the weights, such as those that `save_model` stores."""
    wrapper: str | None
    """Key of the mapping in which the tensors lay; None at the top level and in safetensors."""
    names: dict[str, str]
    """Bare key -> key in the file."""
    kept: dict[str, Tensor]
    """Tensors that `convert` kept for the way back, by their key in the original file."""


def read_container(path: Path, *, ema: bool = False) -> Container:
    """Reads a safetensors file or a torch checkpoint: bare, wrapped, or of a training run.

    A folder in the form of the Hugging Face Hub stands for its model.safetensors.

    Pickles go through torch's restricted unpickler; beyond tensors and plain containers only
    argparse.Namespace, which training checkpoints carry, is admitted. With `ema`, reads the moving
    average that a training checkpoint keeps beside its weights.
    Raises WeightsError when the file is missing, damaged, hostile or holds no weights.
    """
    if (path / FOLDER_WEIGHTS).is_file():
        path = path / FOLDER_WEIGHTS
    if path.is_dir():
        raise WeightsError(f"{path}: a directory, not a file of weights")
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file")
    if path.suffix == ".safetensors":
        tensors, metadata = _read_safetensors(path)
        if ema:
            raise WeightsError(f"{path}: holds one set of weights, no moving average beside it")
        wrapper = None
    else:
        content = _read_torch(path)
        wrapper, tensors = _unwrap(content, path, ema)
        texts = content if isinstance(content, Mapping) else {}
        # `save_model` stores strings; other checkpoints may keep something else under such names.
        metadata = {key: text for key, text in texts.items() if isinstance(text, str)}
    kept = {k.removeprefix(KEPT): t for k, t in tensors.items() if k.startswith(KEPT)}
    own = {key: tensor for key, tensor in tensors.items() if not key.startswith(KEPT)}
    names = _bare_names(own, path)
    bare = {name: own[key] for name, key in names.items()}
    stored = metadata.get(CONFIG_METADATA)
    config = None if stored is None else _config(stored, bare, path)
    return Container(bare, config, metadata, wrapper, names, kept)


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


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            # A tensor lies at any address of the file's memory, and products of arrays that are not
            # aligned can differ in the last bit. Copies are aligned.
            tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118 - not a dict
            return tensors, dict(file.metadata() or {})
    except Exception as error:  # a dtype of its own, no permission, a damaged header
        raise WeightsError(f"{path}: damaged safetensors file ({brief(error)})") from error


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


def _unwrap(content: Any, path: Path, ema: bool) -> tuple[str | None, dict[str, Tensor]]:
    """The state_dict in a checkpoint, and the key under which it lies.

    A checkpoint with nothing but an average gives that.
    """
    wrappers = _EMA_WRAPPERS if ema else _WRAPPERS
    top = {None: content}
    if isinstance(content, Mapping):
        inner = {key: content[key] for key in (*wrappers, *_EMA_WRAPPERS) if key in content}
        candidates = inner if ema else {**inner, **top}
    else:
        candidates = {} if ema else top
    for key, candidate in candidates.items():
        if _is_state_dict(candidate):
            return key, dict(candidate)
    found = f"a {type(content).__name__}"
    if isinstance(content, Mapping):
        keys = ", ".join(brief(key) for key in islice(content, 5))
        found = f"{len(content)} keys: {keys}{', ...' if len(content) > 5 else ''}"
    what, where = ("moving average", "") if ema else ("state_dict", "at the top level and ")
    raise WeightsError(
        f"{path}: holds no {what}; looked {where}under {', '.join(wrappers)}, found {found}"
    )


def _is_state_dict(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and len(value) > 0
        and all(isinstance(key, str) and isinstance(item, Tensor) for key, item in value.items())
    )


def _bare_names(tensors: dict[str, Tensor], path: Path) -> dict[str, str]:
    """Name without wrappers' prefixes -> key, of tensors that are proved to be plain numbers."""
    bare: dict[str, str] = {}
    for key, tensor in tensors.items():
        name = key
        while prefix := next((p for p in _PREFIXES if name.startswith(p)), None):
            name = name.removeprefix(prefix)
        if name in bare:
            raise WeightsError(
                f"{path}: two tensors are named {brief(name)} once prefixes such as "
                f"'{_PREFIXES[0]}' are removed: keep one of them"
            )
        if fault := no_number(tensor) or (None if FOREIGN.match(name) else _no_weight(tensor)):
            raise WeightsError(
                f"{path}: {brief(name)} {fault}; weights are dense, finite, real numbers"
            )
        bare[name] = key
    return bare


def no_number(tensor: Tensor) -> str | None:
    """Why a tensor is no plain array of the numbers that its file stores, or None."""
    if type(tensor) not in (Tensor, nn.Parameter) or tensor.layout != torch.strided:
        return f"is {brief(str(tensor.layout))}, not dense"
    if tensor.is_meta:
        return "has a shape and no values"
    # A stride of zero repeats one stored number, so a few bytes could claim terabytes.
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        return f"claims {tensor.numel():,} numbers and stores fewer"
    return None


def _no_weight(tensor: Tensor) -> str | None:
    """Why an array cannot be a weight of the model, or None."""
    if not tensor.numel():
        why = ": ZeRO stage 3 leaves the weights elsewhere, zero_to_fp32.py gathers them"
        return f"is empty, of shape {tuple(tensor.shape)}{why if tensor.shape == (0,) else ''}"
    if tensor.dtype not in _FLOATS:
        return f"has dtype {tensor.dtype}"
    # The model computes in float32, in which 1e300 is infinite.
    if not tensor.float().isfinite().all():
        return "holds NaN or infinite numbers"
    return None
