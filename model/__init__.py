"""VideoMambaPro and VideoMamba in PyTorch.

Names resolve on first use, so that `model.config` can be imported without torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.backbone import VideoMamba, create_model
    from model.config import PRESETS, ModelConfig, resolve_config
    from model.convert import from_pretrained
    from model.errors import ModelConfigError, ModelError, WeightsError
    from model.staggered import StaggeredStream
    from model.stream import Stream
    from model.weights import load_model, save_model

_HOME = {
    "VideoMamba": "model.backbone",
    "create_model": "model.backbone",
    "PRESETS": "model.config",
    "ModelConfig": "model.config",
    "resolve_config": "model.config",
    "ModelError": "model.errors",
    "ModelConfigError": "model.errors",
    "WeightsError": "model.errors",
    "from_pretrained": "model.convert",
    "StaggeredStream": "model.staggered",
    "Stream": "model.stream",
    "load_model": "model.weights",
    "save_model": "model.weights",
}

__all__ = [
    "PRESETS",
    "ModelConfig",
    "ModelConfigError",
    "ModelError",
    "StaggeredStream",
    "Stream",
    "VideoMamba",
    "WeightsError",
    "create_model",
    "from_pretrained",
    "load_model",
    "resolve_config",
    "save_model",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'model' has no attribute '{name}'")
    return getattr(import_module(_HOME[name]), name)
