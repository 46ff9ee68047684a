"""The results of `vmp bench step` and the tables that it prints."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

from rich.console import Group
from rich.table import Table

from pipeline.config import RunConfig

PEAK_BF16_FLOPS_PER_S = {
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA H100 80GB HBM3": 989e12,
    "NVIDIA H200": 989e12,
}
"""Device name in torch -> dense bf16 FLOP/s from the data sheet."""


class StepTime(NamedTuple):
    """Seconds of one optimizer step, over all its micro-batches."""

    forward_s: float
    backward_s: float
    optimizer_s: float
    """Time of the optimizer, with the finite check and the clipping."""

    @property
    def total_s(self) -> float:
        return sum(self)


@dataclass(frozen=True)
class Contender:
    """The measurements of one way to compute the step, on rank 0."""

    name: str
    times: list[StepTime] = field(default_factory=list)
    """Time of the step in each round."""
    losses: list[float] = field(default_factory=list)
    """Loss of every step, warm-up included."""
    peak_bytes: list[int] = field(default_factory=list)
    """Peak memory of a step, weights and moments included, on the rank that needs most."""
    same_loss: bool = True
    """Whether the contender computes the same function as the recipe's own step."""

    @property
    def median(self) -> StepTime:
        """Step of the median round, whose phases add up to its total."""
        return sorted(self.times, key=lambda step: step.total_s)[len(self.times) // 2]


@dataclass(frozen=True)
class StepReport:
    """Results of the contenders on one machine; the first is the recipe's own step."""

    config: RunConfig
    micro_batch: int
    accumulation: int
    ranks: int
    device: str
    precision: str
    threads: int
    flops_per_rank: int
    """Model FLOPs of a step on one rank."""
    product_flops_per_s: float
    """Rate of the largest matrix product of a block, measured alone in the same rounds."""
    contenders: tuple[Contender, ...]
    left_out: tuple[tuple[str, str], ...] = ()
    """(key, reason) of the contenders that could not be measured."""

    @property
    def clips(self) -> int:
        """Clips per step over all ranks, each view counted."""
        return self.micro_batch * self.accumulation * self.ranks * self.config.data.views

    def flops_per_s(self, contender: Contender) -> float:
        """Return the model FLOPs per second of one rank."""
        return self.flops_per_rank / contender.median.total_s

    def mfu(self, contender: Contender) -> float | None:
        """Return the fraction of the device's bf16 peak; None when that is unknown."""
        peak = PEAK_BF16_FLOPS_PER_S.get(self.device)
        if peak is None or self.precision != "bf16":
            return None
        return self.flops_per_s(contender) / peak

    def ratio(self, contender: Contender, part: Callable[[StepTime], float]) -> float:
        """Return a part's time relative to that in the recipe's own step, median over rounds."""
        pairs = zip(contender.times, self.contenders[0].times, strict=True)
        return statistics.median(part(theirs) / part(ours) for theirs, ours in pairs)

    def tables(self) -> Group:
        """Return the tables that `vmp bench step` prints."""
        model, data = self.config.model, self.config.data
        title = (
            f"{self.config.name}: {model.depth} blocks of {model.embed_dim}, "
            f"{model.num_tokens} tokens, {self.precision}, {self.device}, {self.threads} threads; "
            f"a step is {self.micro_batch} videos x {data.views} views x {self.accumulation} "
            f"micro-batches x {self.ranks} ranks, {'mixed' if data.mix.is_on else 'not mixed'}"
        )
        return Group(
            title,
            self._absolute(),
            self._relative(),
            "Synthetic clips in memory: no loader, no disk. Peak: weights, moments, gradients and "
            "activations.\nof product: FLOP/s over those of in_proj alone in the same run; "
            "FLOPs are\nthose of the recipe's model for all.",
            *(f"left out: {who}: {why}" for who, why in self.left_out),
        )

    def _absolute(self) -> Table:
        table = Table()
        table.add_column("contender", no_wrap=True)
        heads = ("clips/s", "step ms", "forward", "backward", "optimizer", "peak MiB")
        for head in (*heads, "GFLOP/s", "MFU", "of product", "loss"):
            table.add_column(head, justify="right")
        for contender in self.contenders:
            step, rate, mfu = contender.median, self.flops_per_s(contender), self.mfu(contender)
            times = (step.total_s, *step)
            table.add_row(
                contender.name,
                f"{self.clips / step.total_s:.1f}",
                *(f"{1e3 * seconds:.1f}" for seconds in times),
                f"{contender.peak_bytes[0] / 2**20:.0f}" if contender.peak_bytes else "N/A",
                f"{rate / 1e9:.1f}",
                "N/A" if mfu is None else f"{mfu:.1%}",
                f"{rate / self.product_flops_per_s:.2f}",
                f"{contender.losses[-1]:.5f}",
            )
        return table

    def _relative(self) -> Table:
        own = self.contenders[0]
        table = Table()
        table.add_column(f"over {own.name}", no_wrap=True)
        for head in ("step", "forward", "backward", "optimizer", "peak"):
            table.add_column(head, justify="right")
        parts: tuple[Callable[[StepTime], float], ...] = (
            lambda step: step.total_s,
            lambda step: step.forward_s,
            lambda step: step.backward_s,
            lambda step: step.optimizer_s,
        )
        for contender in self.contenders[1:]:
            is_known = own.peak_bytes and contender.peak_bytes
            table.add_row(
                contender.name,
                *(f"{self.ratio(contender, part):.2f}x" for part in parts),
                f"{contender.peak_bytes[0] / own.peak_bytes[0]:.2f}x" if is_known else "N/A",
            )
        return table
