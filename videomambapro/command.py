"""The `vmp` command. It starts here because no file of a user's is called videomambapro.py."""

from __future__ import annotations

import os
import sys
from pathlib import Path


def main() -> None:
    """Runs `pipeline.cli` without the working directory on the search path.

    It is there when PYTHONPATH has an empty entry, as in PYTHONPATH=$PYTHONPATH:/more.
    """
    here = os.path.realpath(".")
    if here != str(Path(__file__).resolve().parents[1]):
        sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry) != here]
    from pipeline.cli import main as run

    run()
