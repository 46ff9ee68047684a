"""Isolation of this project's processes from the working directory and from other users.

Python imports this project's files and installed ones, but none from the working directory. No
other user can write the files of a run, nor read those of a private run. This module imports
little, because every command starts with it.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OTHERS_WRITE, _OTHERS_AND_GROUP = 0o002, 0o077


def isolate() -> None:
    """Remove the working directory from the import path of this process and its children.

    A folder of experiments often has a model.py, which `python -m` would import instead of this
    project's. Child processes import the same files as this one, whether installed or not.
    """
    sys.path[:] = [entry for entry in sys.path if not _is_working_directory(entry)]
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    kept = [entry for entry in entries if entry and not _is_working_directory(entry)]
    if _ROOT.name not in ("site-packages", "dist-packages") and str(_ROOT) not in kept:
        kept.insert(0, str(_ROOT))
    os.environ["PYTHONSAFEPATH"] = "1"
    os.environ["PYTHONPATH"] = os.pathsep.join(kept)


def set_umask(*, private: bool) -> None:
    """Keep this process and its children from creating files that everyone can write.

    With `private`, other users cannot read new files either. A pickle of a job must not be writable
    by others, as they could make the job do anything.
    """
    strictest = os.umask(_OTHERS_AND_GROUP)
    os.umask(strictest | (_OTHERS_AND_GROUP if private else _OTHERS_WRITE))


def _is_working_directory(entry: str) -> bool:
    """Return whether `entry` is the working directory, unless that is this project's checkout."""
    here = os.path.realpath(".")
    return os.path.realpath(entry) == here != str(_ROOT)
