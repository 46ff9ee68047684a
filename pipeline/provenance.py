"""Provenance of a result: code, packages, machine and command."""

from __future__ import annotations

import os
import platform
import socket
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.redact import redact

PACKAGES = ("videomambapro", "torch", "deepspeed", "mlflow", "submitit", "webdataset", "av")


def collect() -> dict[str, Any]:
    """Collect the provenance of this process, ready for JSON; unknown entries are None."""
    import torch

    return {
        "argv": [redact(argument) for argument in sys.argv],
        "host": socket.gethostname(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "cuda": torch.version.cuda,
        "devices": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        "cpu_count": os.cpu_count(),
        "git": _git(),
        "slurm": {k: v for k, v in os.environ.items() if k.startswith("SLURM_JOB")},
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git() -> dict[str, Any] | None:
    folder = Path(__file__).parent

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", *arguments], cwd=folder, capture_output=True, text=True, check=True
        ).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.CalledProcessError):
        return None
