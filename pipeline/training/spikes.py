"""The rule by which a loss is a spike, over the losses that all ranks agree on."""

from __future__ import annotations

import statistics
from collections import deque

from pipeline.checkpoint.layout import LossHistory
from pipeline.errors import SpikeError
from pipeline.training.config import StabilityConfig

_MAD_OF_NORMAL = 1.4826
"""Standard deviation of a normal distribution in units of its median absolute deviation."""


class SpikeWatch:
    """The newest losses of a run; it raises when too many steps in a row stand out from them.

    It decides from numbers that are the same on all ranks, and its history is part of a checkpoint,
    so a resumed run decides as one that was never stopped.
    """

    def __init__(self, config: StabilityConfig) -> None:
        self.config = config
        self._losses: deque[float] = deque(maxlen=config.window_steps)
        self._spikes: tuple[int, ...] = ()

    def watch(self, step: int, loss: float) -> None:
        """Judge the loss of a step before it is applied.

        Args:
            step: index of the optimizer step.
            loss: mean over the global batch, finite.
        Raises SpikeError in the last of `spikes_in_a_row` steps whose loss is a spike.
        """
        if not self.config.rollback:
            return
        limit = self.limit()
        if limit is None or loss <= limit:
            self._losses.append(loss)
            self._spikes = ()
            return
        # A spike stays out of the window, which would otherwise soon hold nothing else.
        self._spikes += (step,)
        if len(self._spikes) == self.config.spikes_in_a_row:
            raise SpikeError(
                f"the loss of {loss:.4g} at step {step} is above {limit:.4g}, "
                f"{len(self._spikes)} in a row (median of the last {len(self._losses)}: "
                f"{statistics.median(self._losses):.4g})",
                steps=self._spikes,
            )

    def limit(self) -> float | None:
        """Return the loss above which a step is a spike; None until the window is full."""
        if len(self._losses) < self.config.window_steps:
            return None
        median = statistics.median(self._losses)
        deviation = statistics.median(abs(loss - median) for loss in self._losses)
        return median + max(
            self.config.min_rise, self.config.threshold * _MAD_OF_NORMAL * deviation
        )

    @property
    def history(self) -> LossHistory:
        """State for a checkpoint."""
        return LossHistory(losses=tuple(self._losses), spikes=self._spikes)

    def restore(self, history: LossHistory) -> None:
        self._losses.clear()
        self._losses.extend(history.losses)
        self._spikes = history.spikes
