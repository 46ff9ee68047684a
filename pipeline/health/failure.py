"""Why an attempt ended: a class that a policy can act on, and one line for a person.

Each rank that fails leaves logs/failure-rank00000.json. When one rank dies, the others fail too, in
their next collective; `first_failure` tells the cause from these consequences.
"""

from __future__ import annotations

import errno
import os
import re
import socket
import time
import traceback
from enum import StrEnum
from pathlib import Path

import torch
import torch.distributed as dist
from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import exits
from pipeline.errors import HangError, NodeFaultError, NonFiniteError, SaveError
from pipeline.rundir import durable


class StopClass(StrEnum):
    """Kinds of ends; what each is answered with stands in `slurm.policy` and docs/operations.md."""

    FINISHED = "finished"
    PREEMPTED = "preempted"
    TIME_LIMIT = "time_limit"
    CANCELLED = "cancelled"
    NODE_FAULT = "node_fault"
    """A device, a node or a process died, or a node failed its preflight."""
    HANG = "hang"
    """No step for `health.hang_timeout_s`."""
    NON_FINITE = "non_finite"
    CONFIGURATION = "configuration"
    """Bad input: recipe, data or checkpoint contradict each other."""
    OUT_OF_MEMORY = "out_of_memory"
    DISK_FULL = "disk_full"
    CRASH = "crash"
    """Any other exception: most likely a bug."""


class Failure(BaseModel):
    """How one rank failed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    stop_class: StopClass
    error: str
    rank: int
    host: str
    time: float
    """Seconds since the epoch."""
    attempt: str = ""
    """See `attempt_id`."""
    consequence: bool
    """The rank only noticed that another one was gone."""
    traceback: str

    def __str__(self) -> str:
        return f"rank {self.rank} on {self.host}: {self.error}"


_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out waiting|socket timeout|peer", re.I
)
_TIMED_OUT = re.compile(r"timed out waiting|socket timeout", re.I)
_DEVICE_LOST = re.compile(
    r"CUDA.*(ECC|unspecified launch failure|unknown error|NVLink|device.*(lost|unavailable))"
    r"|DataLoader worker .* killed by signal"
)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.I)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def classify(error: BaseException) -> StopClass:
    """The class of an exception; the chain of its causes is searched too."""
    chain = list(_causes(error))
    if any(isinstance(e, OSError) and e.errno in _DISK_FULL for e in chain):
        return StopClass.DISK_FULL
    for e in chain:
        if isinstance(e, NonFiniteError):
            return StopClass.NON_FINITE
        if isinstance(e, HangError):
            return StopClass.HANG
        if isinstance(e, NodeFaultError) or _is_peer_loss(e):
            return StopClass.NODE_FAULT
        if isinstance(e, torch.OutOfMemoryError | MemoryError):
            return StopClass.OUT_OF_MEMORY
        if isinstance(e, RuntimeError) and _NO_MEMORY.search(str(e)):
            return StopClass.OUT_OF_MEMORY
        if isinstance(e, RuntimeError) and _DEVICE_LOST.search(str(e)):
            return StopClass.NODE_FAULT
    if isinstance(error, exits.USER_ERRORS):
        return StopClass.CONFIGURATION
    return StopClass.CRASH


def timed_out(error: BaseException) -> bool:
    """Did a collective wait in vain for another rank, which may well be alive?"""
    return any(isinstance(e, RuntimeError) and _TIMED_OUT.search(str(e)) for e in _causes(error))


def record_failure(
    run_dir: Path, rank: int, error: BaseException, *, consequence: bool = False
) -> Failure:
    """Leave this rank's failure in the run directory; nothing is raised when that is impossible.

    `consequence`: another rank is the cause; the loss of a peer is taken for one anyway.
    """
    elsewhere = isinstance(error, NodeFaultError) and bool(error.ranks) and rank not in error.ranks
    failure = Failure(
        stop_class=classify(error),
        error=" ".join(f"{type(error).__name__}: {error}".split()),
        rank=rank,
        host=socket.gethostname(),
        time=time.time(),
        attempt=attempt_id(),
        consequence=consequence or elsewhere or any(_is_peer_loss(e) for e in _causes(error)),
        traceback="".join(traceback.format_exception(error)),
    )
    try:
        durable.write_text(_path(run_dir, rank), failure.model_dump_json(indent=1))
    except OSError:  # a full disk is one of the failures to record; the log has it as well
        traceback.print_exc()
    return failure


def attempt_id() -> str:
    """Tells this attempt of a SLURM job from earlier ones; set by `slurm.job`, empty elsewhere."""
    return os.environ.get("VMP_ATTEMPT", "")


def first_failure(run_dir: Path, attempt: str = "") -> Failure | None:
    """The failure that caused the others: the earliest of an attempt that is no consequence."""
    found = []
    for path in (run_dir / "logs").glob("failure-rank*.json"):
        try:
            found.append(Failure.model_validate_json(path.read_bytes()))
        except (OSError, ValidationError):
            continue  # cut short by a kill or a full disk
    mine = [failure for failure in found if failure.attempt == attempt]
    return min(mine, key=lambda f: (f.consequence, f.time), default=None)


def forget_failures(run_dir: Path) -> None:
    """Those of the attempt before. Call it before any rank is started."""
    for path in (run_dir / "logs").glob("failure-rank*.json"):
        path.unlink(missing_ok=True)


def _path(run_dir: Path, rank: int) -> Path:
    return run_dir / "logs" / f"failure-rank{rank:05d}.json"


def _is_peer_loss(error: BaseException) -> bool:
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError | dist.DistBackendError):
        return True
    # Ours say what they mean.
    if isinstance(error, NonFiniteError | HangError | NodeFaultError | SaveError):
        return False
    return isinstance(error, RuntimeError) and bool(_PEER_LOST.search(str(error)))


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain
