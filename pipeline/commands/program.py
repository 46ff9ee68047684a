"""The name under which the user can call `vmp`, for printed commands that users copy."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def vmp() -> str:
    """Return `vmp` if the shell finds this installation's script by that name, else its path."""
    script = Path(sys.prefix) / "bin" / "vmp"
    found = shutil.which("vmp")
    if found is not None and Path(found).resolve() == script.resolve():
        return "vmp"
    return shlex.quote(min(os.path.relpath(script), str(script), key=len))
