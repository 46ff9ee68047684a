"""Copies the code at submission, so that later edits of the checkout do not reach a job.

A copy is named by its content, and all runs of a directory share it.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.rundir.paths import CODE, SNAPSHOTS

PACKAGES = ("model", "pipeline", "slurm", "data_prep", "videomambapro")
_LEFT_OUT = shutil.ignore_patterns("__pycache__", "*.pyc", "*.so")


def take(runs_dir: Path) -> Path:
    """The directory under `runs_dir` that holds this code; created if absent."""
    root = Path(__file__).resolve().parents[1]
    target = runs_dir.resolve() / SNAPSHOTS / _digest(root)
    if target.is_dir():
        return target
    staging = target.with_name(f"{target.name}.{os.getpid()}.tmp")
    for package in PACKAGES:
        shutil.copytree(root / package, staging / package, ignore=_LEFT_OUT)
    with suppress(OSError):  # another process has already put the same content there
        staging.rename(target)
    shutil.rmtree(staging, ignore_errors=True)
    return target


def link(run_dir: Path, code: Path) -> None:
    """Point the link `runs/<name>/code` at the code of the newest submission."""
    temporary = run_dir / f".code.{os.getpid()}"
    temporary.symlink_to(os.path.relpath(code, run_dir.resolve()))
    temporary.replace(run_dir / CODE)


def _digest(root: Path) -> str:
    content = hashlib.sha256()
    for path in _files(root):
        content.update(f"{path.relative_to(root)}\0{path.stat().st_size}\0".encode())
        content.update(path.read_bytes())
    return content.hexdigest()[:16]


def _files(root: Path) -> Iterator[Path]:
    for package in PACKAGES:
        for path in sorted((root / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".so":
                yield path
