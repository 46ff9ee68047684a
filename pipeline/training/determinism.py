"""Seeds, threads and bitwise repeatability."""

from __future__ import annotations

import os

import torch


def configure(seed: int, *, deterministic: bool, threads: int | None) -> None:
    """Seed the initial weights and, if asked, forbid every operator that is not repeatable.

    Training draws nothing from these generators: see `pipeline.data.sample_rng`.
    """
    if threads is not None:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    if deterministic:
        # cuBLAS reads this when its handle is made; without it, it picks algorithms by workspace.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        # As torch.use_deterministic_algorithms, which also imports torch's compiler to tell it so.
        torch.set_deterministic_debug_mode("error")
        # A debugging aid that comes with it: filling every fresh tensor, at half a step's cost.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = False
