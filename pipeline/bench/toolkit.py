"""Programs of a CUDA toolkit, which need not be in PATH."""

import shutil


def find_program(name: str) -> str | None:
    """Its path; None when no toolkit is installed. PATH comes first."""
    return shutil.which(name) or shutil.which(name, path="/usr/local/cuda/bin")
