"""What a step cost and what it achieved, accumulated on the device and read every few steps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.distributed import sum_over_ranks
from pipeline.task import Report


class Meters:
    """Sums since the last `flush`. Spans time the phases of a step by their names."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(3, device=self._device)
        self._span_s: dict[str, float] = defaultdict(float)
        self._started = time.perf_counter()
        self._steps = 0

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        yield
        self._span_s[name] += time.perf_counter() - begin

    def add(self, report: Report) -> None:
        self._sums += torch.stack(report)

    def count_step(self) -> None:
        self._steps += 1

    def flush(self) -> dict[str, float]:
        """Means over the steps since the last flush, over all ranks. Collective."""
        loss, correct, weight = sum_over_ranks(self._sums.cpu()).tolist()
        elapsed = time.perf_counter() - self._started
        seen = max(weight, 1.0)
        values = {
            "loss": loss / seen,
            "top1": correct / seen,
            "clips_per_s": weight / elapsed,
            "step_s": elapsed / max(self._steps, 1),
            "data_wait_share": self._span_s["data"] / elapsed,
        }
        if self._device.type == "cuda":
            values["memory_peak_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        self._reset()
        return values
