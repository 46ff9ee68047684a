"""Checks that every node is fit for the run, made before anything is built.

A fault that one rank finds is raised on all ranks, because the others would otherwise wait for that
rank in their next collective. The failure record of the rank that found it counts as the cause.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import socket
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import torch

from pipeline.config import RunConfig
from pipeline.errors import NodeFaultError
from pipeline.training.distributed import World, barrier, from_all_ranks, sum_over_ranks

logger = logging.getLogger(__name__)

SHARED_MEMORY = Path("/dev/shm")
# If less than this fraction of the memory is free, another process is using the device.
_MIN_FREE_DEVICE_SHARE = 0.5
_REDUCED_ELEMENTS = 2**18


class Finding(NamedTuple):
    """A fault of a node."""

    text: str
    """What is wrong, where, and what to do about it."""
    disk_full: bool = False
    """Whether the run directory's disk is full, which a change of node would not help."""


class Report(NamedTuple):
    """The findings of one rank, and its clock."""

    rank: int
    host: str
    clock: float
    """Seconds since the Unix epoch, read by all ranks right after a barrier."""
    findings: list[Finding]


def check(config: RunConfig, run_dir: Path, world: World) -> None:
    """Check this node and gather the findings of all ranks. Collective.

    Raises the same error on every rank: OSError (ENOSPC) for a full run directory, else
    NodeFaultError, which names the host of each finding.
    """
    reduced_s, wrong_sum = _all_reduce(world)
    findings = [*_look(config, run_dir), *wrong_sum]
    barrier()
    reports = from_all_ranks(Report(world.rank, socket.gethostname(), time.time(), findings))
    skew_s = max(abs(lag) for lag in clock_lags(reports))
    judge(reports, config.health.max_clock_skew_s)
    logger.info(
        "preflight: %d ranks, %d hosts; all-reduce of 1 MiB %.1f ms, clocks within %.2f s: all fit",
        world.size,
        len({report.host for report in reports}),
        reduced_s * 1000,
        skew_s,
    )


def judge(reports: list[Report], max_clock_skew_s: float) -> None:
    """Raise one error for the findings of all reports, if there are any.

    Raises OSError (ENOSPC) for a full run directory, else NodeFaultError.
    """
    bad = {r.rank: list(r.findings) for r in reports}
    for report, lag in zip(reports, clock_lags(reports), strict=True):
        if abs(lag) > max_clock_skew_s:
            bad[report.rank].append(
                Finding(
                    f"clock is {lag:+.1f} s off the median of all ranks "
                    f"(health.max_clock_skew_s={max_clock_skew_s:g}): start its NTP client"
                )
            )
    faults = [(r, finding) for r in reports for finding in bad[r.rank]]
    if full := [(r, finding) for r, finding in faults if finding.disk_full]:
        raise OSError(errno.ENOSPC, _say(full))
    if faults:
        raise NodeFaultError(_say(faults), ranks=frozenset(r.rank for r, _ in faults))


def _say(faults: list[tuple[Report, Finding]]) -> str:
    """Return one line in which a finding of several ranks of a host appears once."""
    lines = dict.fromkeys(f"{report.host}: {finding.text}" for report, finding in faults)
    return f"preflight: {'; '.join(lines)}"


def clock_lags(reports: list[Report]) -> list[float]:
    """Return the seconds by which each rank's clock is ahead of the median."""
    median = statistics.median(report.clock for report in reports)
    return [report.clock - median for report in reports]


def _look(config: RunConfig, run_dir: Path) -> Iterator[Finding]:
    health = config.health
    if low := low_space(run_dir, health.min_free_gib):
        yield Finding(f"run directory {low}; free space or set runs_dir", disk_full=True)
    yield from _temporary_directory(run_dir, health.min_free_gib)
    if config.data.workers:
        wanted = _batch_bytes(config) * _local_ranks() / 2**30
        if low := low_space(SHARED_MEMORY, wanted):
            yield Finding(
                f"shared memory {low} for the loaders' batches; enlarge it (docker --shm-size), or "
                "lower data.workers or data.prefetch"
            )
    yield from _devices()


def low_space(path: Path, min_gib: float) -> str | None:
    """Return a message if less than `min_gib` is free where `path` is; None otherwise."""
    try:
        free = shutil.disk_usage(path).free / 2**30
    except OSError as error:
        return f"{path} cannot be used: {error.strerror}"
    return f"{path} has {free:.2f} GiB free, needs {min_gib:.2f}" if free < min_gib else None


def _temporary_directory(run_dir: Path, min_gib: float) -> Iterator[Finding]:
    asked = os.environ.get("TMPDIR")
    temporary = Path(tempfile.gettempdir())
    if asked and temporary.resolve() != Path(asked).resolve():  # Python uses another without notice
        yield Finding(f"TMPDIR={asked} cannot be written; mount it or unset TMPDIR")
    if temporary.stat().st_dev == run_dir.stat().st_dev:
        return
    if low := low_space(temporary, min_gib):
        yield Finding(f"temporary directory {low}; free space or set TMPDIR")


def _batch_bytes(config: RunConfig) -> float:
    """Return the bytes of all batches that one rank's loader processes may hold ready."""
    size = config.model
    clip = 3 * size.num_frames * size.img_size**2
    batch = config.batch.max_micro * config.data.views * clip
    return float(config.data.workers * config.data.prefetch * batch)


def _devices() -> Iterator[Finding]:
    if not torch.cuda.is_available():
        return
    # Some launchers make only the rank's own device visible, so a count of 1 is no fault.
    if 1 < torch.cuda.device_count() < _local_ranks():
        yield Finding(
            f"{torch.cuda.device_count()} GPUs are visible to {_local_ranks()} ranks: one is lost "
            "(nvidia-smi), or lower the ranks per node"
        )
    free, total = torch.cuda.mem_get_info()
    if free < _MIN_FREE_DEVICE_SHARE * total:
        yield Finding(
            f"GPU {torch.cuda.current_device()} has {free / 2**30:.1f} of {total / 2**30:.1f} GiB "
            "free: another process is on it (nvidia-smi)"
        )


def _all_reduce(world: World) -> tuple[float, list[Finding]]:
    """Time an all-reduce of 1 MiB over the gradients' network, in seconds, and check its sum."""
    for _ in range(2):  # the first one connects the ranks
        begin = time.perf_counter()
        tensor = torch.full((_REDUCED_ELEMENTS,), float(world.rank + 1), device=world.device)
        total = sum_over_ranks(tensor).cpu()
        elapsed = time.perf_counter() - begin
    expected = world.size * (world.size + 1) / 2
    if bool((total == expected).all()):
        return elapsed, []
    return elapsed, [
        Finding(f"a small all-reduce gave {total[0]:g}, not {expected:g}: network or device fault")
    ]


def _local_ranks() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
