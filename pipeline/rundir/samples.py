"""logs/samples-rank00000.tsv: the samples that one rank trained on, as `step<TAB>key` lines.

The files prove that no sample was lost or repeated; `pipeline.audit` compares them with the order
that the run should have followed.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from pipeline.rundir import durable
from pipeline.rundir.paths import of_all_ranks, samples_file

_LINE = re.compile(rb"(\d{1,18})\t([!-~]+)")


class SampleLog:
    """Writer of one rank's file."""

    def __init__(self, run_dir: Path, rank: int) -> None:
        self._file = samples_file(run_dir, rank).open("a")

    def write(self, step: int, keys: list[str]) -> None:
        self._file.writelines(f"{step}\t{key}\n" for key in keys)
        self._file.flush()  # a killed rank must not lose lines that a checkpoint counts

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def drop_samples_from(run_dir: Path, step: int) -> None:
    """Drop the lines of `step` and later from the sample logs of every rank."""
    for path in of_all_ranks(run_dir, samples_file(run_dir, 0)):
        kept = [f"{at}\t{key}\n" for at, key in _lines(path) if at < step]
        durable.write_text(path, "".join(kept))


def logged_from(run_dir: Path, step: int) -> dict[int, int]:
    """Return step -> number of its samples in the logs, for `step` and later."""
    counts: dict[int, int] = {}
    for path in of_all_ranks(run_dir, samples_file(run_dir, 0)):
        for at, _ in _lines(path):
            if at >= step:
                counts[at] = counts.get(at, 0) + 1
    return dict(sorted(counts.items()))


def read_samples(run_dir: Path) -> dict[int, list[str]]:
    """Return step -> the sorted keys of its global batch."""
    steps: dict[int, list[str]] = {}
    for path in of_all_ranks(run_dir, samples_file(run_dir, 0)):
        for step, key in _lines(path):
            steps.setdefault(step, []).append(key)
    return {step: sorted(keys) for step, keys in sorted(steps.items())}


def steps_of_rank(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield (step, keys) of one rank's file, in the order of its lines."""
    for step, lines in groupby(_lines(path), key=lambda line: line[0]):
        yield step, [key for _, key in lines]


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (step, key) of every whole line; a power cut can leave a damaged last line."""
    *whole, _ = path.read_bytes().split(b"\n")
    for line in whole:
        found = _LINE.fullmatch(line)
        if found:
            yield int(found[1]), found[2].decode()
