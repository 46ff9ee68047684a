"""The sample log is readable whatever a kill or a power cut has left of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pipeline.rundir.paths import LOGS, samples_file
from pipeline.rundir.samples import drop_samples_from, logged_from, read_samples, steps_of_rank


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    (tmp_path / LOGS).mkdir()
    samples_file(tmp_path, 0).write_bytes(b"0\ta\n1\tb\n2\tc\n3\td")
    no_step = b"9" * 5000 + b"\tw\n"  # Python refuses to parse more than 4300 digits
    samples_file(tmp_path, 1).write_bytes(b"0\tx\n\0\0\0\0\n1\ty\n\xff\n" + no_step + b"2\tz\n\n")
    return tmp_path


def test_lines_that_are_none_are_left_out(run_dir: Path) -> None:
    assert read_samples(run_dir) == {0: ["a", "x"], 1: ["b", "y"], 2: ["c", "z"]}
    assert logged_from(run_dir, 1) == {1: 2, 2: 2}
    assert list(steps_of_rank(samples_file(run_dir, 1))) == [(0, ["x"]), (1, ["y"]), (2, ["z"])]
    drop_samples_from(run_dir, 2)
    assert read_samples(run_dir) == {0: ["a", "x"], 1: ["b", "y"]}
    assert samples_file(run_dir, 1).read_bytes() == b"0\tx\n1\ty\n"


def test_a_kill_while_it_is_cut_leaves_the_whole_log(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = read_samples(run_dir)

    def killed(descriptor: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", killed)
    with pytest.raises(KeyboardInterrupt):
        drop_samples_from(run_dir, 1)
    assert read_samples(run_dir) == before
