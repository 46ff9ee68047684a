"""What a process of ours takes in and leaves behind.

Python imports our files and the installed ones, never those where the user stands; nobody else
writes our files, and in a private run nobody else reads them. Light: every command starts here.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[1]
_OTHERS_WRITE, _OTHERS_AND_GROUP = 0o002, 0o077


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


def set_umask(*, private: bool) -> None:
    """From now on this process, and what it starts, makes no file that everybody can write.

    With `private` nobody else can read one either. Whoever can write a job's pickle decides what
    the job does.
    """
    strictest = os.umask(_OTHERS_AND_GROUP)
    os.umask(strictest | (_OTHERS_AND_GROUP if private else _OTHERS_WRITE))


def _is_working_directory(entry: str) -> bool:
    """Except for a checkout of ours: what lies there is meant."""
    here = os.path.realpath(".")
    return os.path.realpath(entry) == here != str(_ROOT)
