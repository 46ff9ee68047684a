"""Programs of a CUDA toolkit, which need not be in PATH."""

import importlib.util
import shutil
from pathlib import Path


def find_program(name: str) -> str | None:
    """Its path; None when it is not installed. PATH comes first, then a toolkit, then Triton.

    CUDA builds of torch bring Triton, whose package holds `cuobjdump`.
    """
    places = ["/usr/local/cuda/bin"]
    triton = importlib.util.find_spec("triton")
    if triton is not None and triton.origin is not None:
        places.append(str(Path(triton.origin).parent / "backends/nvidia/bin"))
    found = shutil.which(name)
    for place in places:
        found = found or shutil.which(name, path=place)
    return found
