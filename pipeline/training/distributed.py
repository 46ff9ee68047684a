"""Ranks, devices and agreement between them. All ranks decide together before they act."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import TypeVar, cast

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from pipeline.errors import ConfigError, NodeFaultError
from pipeline.training import store

# What is set already stays: see docs/environment.md.
_NCCL_DEFAULTS = {
    # 3: end the process. Aborting the communicator first (1) can hang as well.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    # The flight recorder: the last collectives of every rank, on disk when one times out.
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """This process among the ranks of the run."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join(*, timeout_s: float, traces: Path | None = None) -> World:
    """Enter the process group described by RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Collective: call on every rank. The environment comes from torchrun, `slurm.job`,
    `slurm.ranks` or `pipeline.training.spawn`; without it this process is a world of one. The names
    of NCCL's dumps begin with `traces`.
    """
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = _select_device(local_rank)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # DeepSpeed takes the number of NUMA nodes for the number of devices unless told.
        os.environ.setdefault("LOCAL_SIZE", os.environ.get("LOCAL_WORLD_SIZE", str(size)))
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": local_rank}.items():
        os.environ.setdefault(name, str(value))
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    if "MASTER_PORT" not in os.environ:
        if size > 1:
            raise ConfigError("WORLD_SIZE is set but MASTER_PORT is not: start ranks with torchrun")
        os.environ["MASTER_PORT"] = str(free_port())
    for name, text in _NCCL_DEFAULTS.items():
        os.environ.setdefault(name, text)
    if traces is not None:
        os.environ.setdefault("TORCH_FR_DUMP_TEMP_FILE", str(traces))
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) == size and sys.platform == "linux":
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    timeout = timedelta(seconds=timeout_s)
    meeting_point = store.meet(rank, size, timeout)
    dist.init_process_group(
        backend="cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
        store=meeting_point,
        rank=-1 if meeting_point is None else rank,
        world_size=-1 if meeting_point is None else size,
        timeout=timeout,
        device_id=device if device.type == "cuda" else None,
    )
    return World(rank, size, local_rank, device)


def _select_device(local_rank: int) -> torch.device:
    granted = int(os.environ.get("SLURM_GPUS_ON_NODE", "0")) if torch.version.cuda else 0
    visible = torch.cuda.device_count()
    # Each rank finds this out before there is anybody to agree with.
    if granted and (not torch.cuda.is_available() or 1 < visible < granted):
        raise NodeFaultError(
            f"SLURM granted {granted} GPUs on {socket.gethostname()}, {visible} work: see "
            "nvidia-smi there, exclude the node, or install a driver that this torch can use"
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Launchers that show each rank only its own device leave exactly one visible: index 0.
    index = 0 if visible == 1 else local_rank
    if index >= visible:
        raise ConfigError(
            f"local rank {local_rank} has no device: {visible} visible on "
            f"{socket.gethostname()}; lower launch.ranks_per_node or ask for more GPUs"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def limit_collectives(timeout_s: float) -> None:
    """From now on, a collective of any group, DeepSpeed's included, fails after `timeout_s`.

    Call it on every rank, right after one of them.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def leave() -> None:
    """Collective: call on every rank."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _alone() -> bool:
    """Is there nobody to agree with? True outside a process group as well."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def any_rank(flag: bool) -> bool:
    """True on every rank when it is true on one. Collective; runs on the CPU, never syncs a GPU."""
    return max_over_ranks(int(flag)) > 0


def max_over_ranks(value: int) -> int:
    """The largest of the ranks' values. Collective."""
    if _alone():
        return value
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Element-wise sum, in place. Collective."""
    if not _alone():
        dist.all_reduce(tensor)
    return tensor


def from_main(value: T) -> T:
    """Rank 0's value on every rank. Collective."""
    if _alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all_ranks(value: T) -> list[T]:
    """The values of all ranks, in their order, on every rank. Collective."""
    if _alone():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def on_main(decide: Callable[[], T]) -> T:
    """Rank 0's result of `decide` on every rank, or its exception on every rank. Collective.

    A rank-0-only exception would leave the other ranks waiting in their next collective.
    """
    value: T | None = None
    error: Exception | None = None
    if _alone() or dist.get_rank() == 0:
        try:
            value = decide()
        except (ValueError, OSError, RuntimeError) as caught:
            error = caught
    value, error = from_main((value, error))
    if error is not None:
        raise error
    return cast(T, value)


def barrier() -> None:
    """Collective: call on every rank."""
    max_over_ranks(0)


def free_port() -> int:
    """A TCP port that nobody listens on at this moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
