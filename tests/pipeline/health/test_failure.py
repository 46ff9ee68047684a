"""Each class of an end is told from the others, because it decides what is done about the end."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest
import torch

from pipeline import exits
from pipeline.errors import (
    CheckpointError,
    ConfigError,
    HangError,
    NodeFaultError,
    NonFiniteError,
    SaveError,
)
from pipeline.health.failure import classify, record_failure
from pipeline.rundir import StopClass, first_failure, forget_failures


def chained(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (NonFiniteError("x"), StopClass.NON_FINITE),
        (HangError("x"), StopClass.HANG),
        (NodeFaultError("x"), StopClass.NODE_FAULT),
        (ConfigError("x"), StopClass.CONFIGURATION),
        (CheckpointError("x"), StopClass.CONFIGURATION),
        (OSError(errno.ENOSPC, "No space left on device"), StopClass.DISK_FULL),
        (chained(SaveError("x"), OSError(errno.EDQUOT, "quota")), StopClass.DISK_FULL),
        (SaveError("no shard of rank 1 under /peer after 300 s"), StopClass.CRASH),
        (torch.OutOfMemoryError("CUDA out of memory"), StopClass.OUT_OF_MEMORY),
        (MemoryError(), StopClass.OUT_OF_MEMORY),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), StopClass.OUT_OF_MEMORY),
        (RuntimeError("CUDA error: uncorrectable ECC error encountered"), StopClass.NODE_FAULT),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed."),
         StopClass.NODE_FAULT),
        (RuntimeError("DataLoader worker (pid(s) 7) exited unexpectedly"), StopClass.NODE_FAULT),
        (RuntimeError("[gloo/pair.cc] Connection closed by peer [127.0.0.1]:1"),
         StopClass.NODE_FAULT),
        (torch.distributed.DistStoreError("wait timeout"), StopClass.NODE_FAULT),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), StopClass.CRASH),
        (KeyError("x"), StopClass.CRASH),
    ],
)  # fmt: skip
def test_each_kind_of_error_has_its_class(error: Exception, expected: StopClass) -> None:
    assert classify(error) is expected


def test_a_save_that_fails_is_no_bad_input() -> None:
    assert not exits.is_bad_input(SaveError("x"))


def test_the_cause_comes_before_what_it_caused(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    assert first_failure(tmp_path) is None
    record_failure(tmp_path, 0, RuntimeError("Connection closed by peer"))
    record_failure(tmp_path, 2, ValueError("the bug"))
    record_failure(tmp_path, 1, ValueError("the same bug, a moment later"))
    (tmp_path / "logs" / "failure-rank00003.json").write_text('{"stop_cl')  # cut short by a kill

    failure = first_failure(tmp_path)

    assert failure is not None
    assert failure.rank == 2
    assert failure.stop_class is StopClass.CRASH
    assert "ValueError: the bug" in failure.traceback
    assert str(failure).endswith("ValueError: the bug")
    forget_failures(tmp_path)
    assert first_failure(tmp_path) is None


def test_a_failure_that_cannot_be_written_raises_nothing(tmp_path: Path) -> None:
    assert record_failure(tmp_path / "gone", 0, ValueError("x")).stop_class is StopClass.CRASH
