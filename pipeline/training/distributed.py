"""Ranks, their devices, and the collectives by which all ranks decide before they act."""

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

# A variable that is already set keeps its value: see docs/environment.md.
_NCCL_DEFAULTS = {
    # 3 ends the process at once; 1 aborts the communicator first, which can itself hang.
    "TORCH_NCCL_ASYNC_ERROR_HANDLING": "3",
    # The flight recorder writes the last collectives of every rank to disk when one times out.
    "TORCH_FR_BUFFER_SIZE": "2000",
    "TORCH_NCCL_DUMP_ON_TIMEOUT": "1",
}

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The place of this process among the ranks of the run, and its device."""

    rank: int
    size: int
    local_rank: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def join(*, timeout_s: float, traces: Path | None = None) -> World:
    """Enter the process group described by RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT.

    Collective: call on every rank. torchrun, `slurm.job`, `slurm.ranks` and
    `pipeline.training.spawn` set these variables; without them this process is a world of one.

    Args:
        timeout_s: time-out of the group's collectives, in seconds.
        traces: path prefix of the dumps that NCCL's flight recorder writes.
    Raises ConfigError when the variables are incomplete or this rank has no device, and
    NodeFaultError when fewer GPUs work than SLURM granted.
    """
    rank = int(os.environ.get("RANK", "0"))
    size = int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    device = _select_device(local_rank)
    if device.type == "cpu":
        os.environ.setdefault("DS_ACCELERATOR", "cpu")
        # Without LOCAL_SIZE, DeepSpeed takes the number of NUMA nodes for the number of devices.
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
    # There is no process group yet, so each rank raises this error by itself.
    if granted and (not torch.cuda.is_available() or 1 < visible < granted):
        raise NodeFaultError(
            f"SLURM granted {granted} GPUs on {socket.gethostname()}, {visible} work: see "
            "nvidia-smi there, exclude the node, or install a driver that this torch can use"
        )
    if not torch.cuda.is_available():
        return torch.device("cpu")
    # Some launchers make only the rank's own device visible; its index is then 0.
    index = 0 if visible == 1 else local_rank
    if index >= visible:
        raise ConfigError(
            f"local rank {local_rank} has no device: {visible} visible on "
            f"{socket.gethostname()}; lower launch.ranks_per_node or ask for more GPUs"
        )
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def limit_collectives(timeout_s: float) -> None:
    """Set the time-out of the collectives of all groups, DeepSpeed's included, to `timeout_s`.

    Call this on every rank, right after a collective.
    """
    for group in list(distributed_c10d._world.pg_map):
        distributed_c10d._set_pg_timeout(timedelta(seconds=timeout_s), group)


def leave() -> None:
    """Leave the process group, if there is one. Collective: call on every rank."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _alone() -> bool:
    """Return whether this is the only rank, which is also true outside a process group."""
    return not dist.is_initialized() or dist.get_world_size() == 1


def any_rank(flag: bool) -> bool:
    """Return whether `flag` is true on any rank. Collective; it never waits for a GPU."""
    return max_over_ranks(int(flag)) > 0


def max_over_ranks(value: int) -> int:
    """Return the largest of the ranks' values. Collective."""
    if _alone():
        return value
    tensor = torch.tensor([value])
    dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return int(tensor.item())


def sum_over_ranks(tensor: torch.Tensor) -> torch.Tensor:
    """Sum a tensor element by element over all ranks, in place. Collective."""
    if not _alone():
        dist.all_reduce(tensor)
    return tensor


def from_main(value: T) -> T:
    """Return rank 0's value on every rank. Collective."""
    if _alone():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0)
    return box[0]


def from_all_ranks(value: T) -> list[T]:
    """Return the values of all ranks, ordered by rank, on every rank. Collective."""
    if _alone():
        return [value]
    values: list[T | None] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return cast(list[T], values)


def on_main(decide: Callable[[], T]) -> T:
    """Call `decide` on rank 0 and return its result, or raise its error, on every rank.

    Collective. An exception on rank 0 alone would leave the others waiting in their next
    collective.
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
    """Wait until every rank has come here. Collective: call on every rank."""
    max_over_ranks(0)


def free_port() -> int:
    """Return a TCP port on which no process listens at this moment."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
