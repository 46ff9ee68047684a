"""Metrics and phase times of training steps, summed on the device and read every few steps."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from pipeline.health.straggler import OwnTime
from pipeline.training.distributed import sum_over_ranks
from pipeline.training.tasks.task import Report


class Meters:
    """Sums of metrics and of named phase times since the last `flush`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._names: tuple[str, ...] = ()
        self.own_time = OwnTime(0.0, 0.0)
        """Mean own time per step of this rank, over the steps before the last flush."""
        self._reset()

    def _reset(self) -> None:
        self._sums = torch.zeros(1 + len(self._names), device=self._device)
        self._span_s: dict[str, float] = defaultdict(float)
        self._device_spans: list[tuple[str, torch.cuda.Event, torch.cuda.Event]] = []
        self._started = time.perf_counter()
        self._steps = 0
        self._grad_norms: list[float] = []

    @contextmanager
    def span(self, name: str) -> Iterator[None]:
        """Time a phase on the host."""
        begin = time.perf_counter()
        yield
        self._span_s[name] += time.perf_counter() - begin

    @contextmanager
    def device_span(self, name: str) -> Iterator[None]:
        """Time a phase on the device by events, which the next flush reads."""
        if self._device.type != "cuda":
            with self.span(name):
                yield
            return
        begin = torch.cuda.Event(enable_timing=True)
        end = torch.cuda.Event(enable_timing=True)
        begin.record()
        yield
        end.record()
        self._device_spans.append((name, begin, end))

    def add(self, report: Report) -> None:
        if not self._names:
            self._names = tuple(report.sums)
            self._sums = torch.zeros(1 + len(self._names), device=self._device)
        self._sums += torch.stack([report.weight, *report.sums.values()])

    def add_grad_norm(self, norm: float) -> None:
        """Add the gradient norm, over all ranks and before clipping, of an applied step."""
        self._grad_norms.append(norm)

    def count_step(self) -> None:
        self._steps += 1

    def flush(self) -> dict[str, float]:
        """Return metric name -> mean since the last flush, and start anew. Collective.

        Clips per second and the metrics of the task cover all ranks; times and memory are those of
        this rank.
        Those of the task are absent if no clip counted.
        """
        weight, *sums = sum_over_ranks(self._sums.cpu()).tolist()
        elapsed = time.perf_counter() - self._started
        for name, begin, end in self._device_spans:  # reading the sums waited for these events
            self._span_s[name] += begin.elapsed_time(end) / 1000
        steps = max(self._steps, 1)
        self.own_time = OwnTime(self._span_s["data"] / steps, self._span_s["forward"] / steps)
        means = [total / weight for total in sums] if weight else []
        values = {
            **dict(zip(self._names, means, strict=False)),
            "clips_per_s": weight / elapsed,
            "step_s": elapsed / steps,
            "data_wait_share": self._span_s["data"] / elapsed,
            "data_wait_s": self.own_time.data_s,
        }
        if self._grad_norms:
            values["grad_norm"] = sum(self._grad_norms) / len(self._grad_norms)
            values["grad_norm_max"] = max(self._grad_norms)
        if self._device.type == "cuda":
            values["memory_peak_gib"] = torch.cuda.max_memory_allocated(self._device) / 2**30
        self._reset()
        return values
