"""The Python API: `from videomambapro import create_model, load_config, open_shards, Predictor`.

Names resolve on first use, so that importing this package costs nothing. Its packages have short
names; when a file or folder of the user's hides one of them, that is said.
"""

from __future__ import annotations

from importlib import import_module, util
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model import (
        ModelConfig,
        StaggeredStream,
        Stream,
        VideoMamba,
        create_model,
        from_pretrained,
        load_model,
        save_model,
    )
    from pipeline.config import RunConfig, load_config
    from pipeline.data import Shards, open_shards
    from pipeline.predict import Predictor

_HOME = {
    "ModelConfig": "model",
    "StaggeredStream": "model",
    "Stream": "model",
    "VideoMamba": "model",
    "create_model": "model",
    "from_pretrained": "model",
    "load_model": "model",
    "save_model": "model",
    "RunConfig": "pipeline.config",
    "load_config": "pipeline.config",
    "Shards": "pipeline.data",
    "open_shards": "pipeline.data",
    "Predictor": "pipeline.predict",
}

__all__ = [
    "ModelConfig",
    "Predictor",
    "RunConfig",
    "Shards",
    "StaggeredStream",
    "Stream",
    "VideoMamba",
    "create_model",
    "from_pretrained",
    "load_config",
    "load_model",
    "open_shards",
    "save_model",
]

_ROOT = Path(__file__).resolve().parents[1]
_PACKAGES = ("model", "pipeline", "slurm", "data_prep")


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'videomambapro' has no attribute '{name}'")
    _refuse_foreign_packages()
    return getattr(import_module(_HOME[name]), name)


def __dir__() -> list[str]:
    return __all__


def _refuse_foreign_packages() -> None:
    """Raises ImportError when one of our packages is hidden; no foreign code is run to find out."""
    for package in _PACKAGES:
        spec = util.find_spec(package)
        found = [] if spec is None else [spec.origin, *(spec.submodule_search_locations or ())]
        places = [Path(place).resolve() for place in found if place is not None]
        if _ROOT / package not in places:
            what = f"is {places[0]}" if places else "cannot be found"
            raise ImportError(
                f"videomambapro: the package '{package}' {what}, not {_ROOT / package}: a file or "
                "folder of that name hides ours; rename it, or start Python with -P to leave the "
                "script's folder out of the search"
            )
