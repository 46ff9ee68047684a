"""How the user can call `vmp` again, for the commands that we print to be copied."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path


def vmp() -> str:
    """`vmp` where the shell finds this installation's script under that name, else its path."""
    script = Path(sys.prefix) / "bin" / "vmp"
    found = shutil.which("vmp")
    if found is not None and Path(found).resolve() == script.resolve():
        return "vmp"
    return shlex.quote(min(os.path.relpath(script), str(script), key=len))
