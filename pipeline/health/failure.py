"""Classification of exceptions by the class of the run's end and by whose fault they are."""

from __future__ import annotations

import errno
import re
from pathlib import Path

import torch
import torch.distributed as dist

from pipeline import exits
from pipeline.errors import (
    HangError,
    NodeFaultError,
    NonFiniteError,
    SaveError,
    SpikeError,
    UnstableError,
)
from pipeline.rundir import Failure, StopClass

_PEER_LOST = re.compile(
    r"connection (closed|reset|refused)|broken pipe|timed out waiting|socket timeout|peer", re.I
)
_TIMED_OUT = re.compile(r"timed out waiting|socket timeout", re.I)
_DEVICE_LOST = re.compile(
    r"CUDA.*(ECC|unspecified launch failure|unknown error|NVLink|device.*(lost|unavailable))"
    r"|DataLoader worker .*(killed by signal|exited unexpectedly)"
)
_NO_MEMORY = re.compile(r"out of memory|can't allocate memory|cannot allocate memory", re.I)
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT)


def classify(error: BaseException) -> StopClass:
    """Return the class of an exception, also considering the chain of its causes."""
    chain = list(_causes(error))
    if any(isinstance(e, OSError) and e.errno in _DISK_FULL for e in chain):
        return StopClass.DISK_FULL
    for e in chain:
        if isinstance(e, NonFiniteError):
            return StopClass.NON_FINITE
        if isinstance(e, SpikeError):
            return StopClass.DIVERGED
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
    if exits.is_bad_input(error):
        return StopClass.CONFIGURATION
    return StopClass.CRASH


def timed_out(error: BaseException) -> bool:
    """Return whether a collective timed out waiting for another rank, which may be alive."""
    return any(isinstance(e, RuntimeError) and _TIMED_OUT.search(str(e)) for e in _causes(error))


def record_failure(
    run_dir: Path, rank: int, error: BaseException, *, consequence: bool = False
) -> Failure:
    """Record this rank's failure in the run directory; a failed write is not raised.

    `consequence` says that another rank is the cause. The loss of a peer counts as a consequence in
    any case.
    """
    elsewhere = isinstance(error, NodeFaultError) and bool(error.ranks) and rank not in error.ranks
    is_consequence = consequence or elsewhere or any(_is_peer_loss(e) for e in _causes(error))
    failure = Failure.of(rank, error, classify(error), consequence=is_consequence)
    failure.write(run_dir)
    return failure


def _is_peer_loss(error: BaseException) -> bool:
    if isinstance(error, dist.DistNetworkError | dist.DistStoreError | dist.DistBackendError):
        return True
    # The text of this project's own errors must not be matched: their type is precise.
    if isinstance(error, UnstableError | HangError | NodeFaultError | SaveError):
        return False
    return isinstance(error, RuntimeError) and bool(_PEER_LOST.search(str(error)))


def _causes(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain
