"""The decision, before any weight changes, to skip a step that is not finite or to fail."""

from __future__ import annotations

from pipeline.errors import NonFiniteError
from pipeline.training.config import GuardConfig


class NonFiniteGuard:
    """Counter of skipped steps, which raises when too many follow one another."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.in_a_row: tuple[int, ...] = ()
        """Faulty steps since the last one that was applied."""
        self.skipped = 0

    def rejects(self, step: int, finite: bool, *, overflow: bool = False) -> bool:
        """Return whether the step must be discarded, the same on every rank.

        Args:
            step: index of the optimizer step, for the message.
            finite: whether all ranks found loss and gradients finite, see `Verdict`.
            overflow: whether the fp16 loss scale was too high. Such a step is skipped but does
                not count as a fault.

        Raises NonFiniteError when more than `max_skipped_in_a_row` faulty steps follow one another.
        """
        if finite:
            self.in_a_row = ()
            return False
        self.skipped += 1
        if overflow:
            return True
        self.in_a_row += (step,)
        if len(self.in_a_row) > self.config.max_skipped_in_a_row:
            raise NonFiniteError(
                f"loss or gradients are not finite at step {step}, {len(self.in_a_row)} in a "
                f"row (allowed: guard.max_skipped_in_a_row={self.config.max_skipped_in_a_row}); "
                "no weight was changed; lower optim.lr or look at the batch in the sample log",
                steps=self.in_a_row,
            )
        return True

    def restore(self, skipped: int, in_a_row: tuple[int, ...]) -> None:
        """Continue from the counts that a checkpoint holds."""
        self.skipped, self.in_a_row = skipped, in_a_row
