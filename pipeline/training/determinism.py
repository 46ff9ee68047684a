"""Seeds, threads and bitwise repeatability."""

from __future__ import annotations

import os

import torch


def configure(seed: int, *, deterministic: bool, threads: int | None) -> None:
    """Seed the initial weights and, if asked, forbid every operator that is not repeatable.

    Training itself draws nothing from torch's generators: see `pipeline.data.sample_rng`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS reads this variable when its handle is created; without a fixed workspace, cuBLAS
        # may choose another algorithm in each run.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # This does what torch.use_deterministic_algorithms does, without importing the compiler.
        torch.set_deterministic_debug_mode("error")
        # The error mode also fills every fresh tensor to help debugging. We turn that off: it
        # changes no result and takes about half a step's time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
