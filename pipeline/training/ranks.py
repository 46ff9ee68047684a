"""How many ranks a run has, as far as it is known before any of them starts. Light: no torch."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from pipeline.training.config import LaunchConfig

# NVIDIA's driver (on a server, under WSL, on a Jetson board) and AMD's.
_DEVICE_FILES = ("nvidia[0-9]*", "dxg", "nvhost-gpu", "kfd")


def num_gpus(devices: Path = Path("/dev")) -> int:
    """GPUs of this machine. Torch, which counts them, is imported only where a driver is."""
    if "torch" not in sys.modules and not any(
        next(devices.glob(pattern), None) for pattern in _DEVICE_FILES
    ):
        return 0
    import torch

    return torch.cuda.device_count()


def ranks_here(launch: LaunchConfig) -> int:
    """`launch.ranks_per_node`, by default one per GPU."""
    return launch.ranks_per_node or max(1, num_gpus())


def inside_launcher() -> bool:
    """Has torchrun or a job script made the ranks already?"""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


def rank_by_environment() -> int:
    """The rank that this process will have. Answers before ranks join and after a failure in it."""
    return int(os.environ.get("RANK", "0"))


def num_ranks(launch: LaunchConfig) -> int:
    """Ranks in all: those that the launcher made, or those that this machine is going to start."""
    return int(os.environ["WORLD_SIZE"]) if inside_launcher() else ranks_here(launch)
