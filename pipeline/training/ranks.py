"""The number of ranks of a run before any rank starts, found without importing torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline.training.config import LaunchConfig

# These are the device files of NVIDIA's driver (on a server, under WSL, on a Jetson) and of AMD's.
_DEVICE_FILES = ("nvidia[0-9]*", "dxg", "nvhost-gpu", "kfd")


def num_gpus(devices: Path = Path("/dev")) -> int:
    """Count this machine's GPUs; torch, which counts them, is imported only if a driver exists."""
    if "torch" not in sys.modules and not any(
        next(devices.glob(pattern), None) for pattern in _DEVICE_FILES
    ):
        return 0
    import torch

    return torch.cuda.device_count()


def ranks_here(launch: LaunchConfig) -> int:
    """Return `launch.ranks_per_node`, or by default one rank per GPU and at least one."""
    return launch.ranks_per_node or max(1, num_gpus())


def inside_launcher() -> bool:
    """Return whether torchrun or a job script has already started the ranks."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_by_environment() -> int:
    """Return this process's rank, also before it joins the others and when joining failed."""
    return int(os.environ.get("RANK", "0"))


def num_ranks(launch: LaunchConfig) -> int:
    """Return the launcher's world size, or the number of ranks that this machine will start."""
    return int(os.environ["WORLD_SIZE"]) if inside_launcher() else ranks_here(launch)
