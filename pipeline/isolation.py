"""Which files Python may import: ours and the installed ones, never those where the user stands."""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]


def isolate() -> None:
    """Keeps the working directory off the search path of this process and of all that it starts.

    A folder of experiments is likely to have a model.py, and `python -m` would import that. The
    processes started from here import the same files as this one, installed or not.
    """
    sys.path[:] = [entry for entry in sys.path if not _is_working_directory(entry)]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if entry and not _is_working_directory(entry)]
    if _ROOT.name not in ("site-packages", "dist-packages") and str(_ROOT) not in kept:
        kept.insert(0, str(_ROOT))
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def _is_working_directory(entry: str) -> bool:
    """Except for a checkout of ours: what lies there is meant."""
    here = os.path.realpath(".")
    return os.path.realpath(entry) == here != str(_ROOT)
