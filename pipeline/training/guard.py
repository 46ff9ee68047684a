"""Non-finite loss or gradients: the same decision on every rank, before any weight is touched."""

from __future__ import annotations

from pipeline.errors import NonFiniteError
from pipeline.training.config import GuardConfig


class NonFiniteGuard:
    """Counts the steps that had to be skipped."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped_in_a_row = 0
        self.skipped = 0

    def rejects(self, step: int, finite: bool, *, overflow: bool = False) -> bool:
        """True when the step must be discarded.

        Args:
            finite: what the ranks agreed on, see `Verdict`.
            overflow: the loss scale of fp16 was too high and has been lowered: skipped, no fault.

        Raises NonFiniteError when too many steps in a row were bad.
        """
        if finite:
            self.skipped_in_a_row = 0
            return False
        self.skipped += 1
        if overflow:
            return True
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.max_skipped_in_a_row:
            raise NonFiniteError(
                f"loss or gradients are not finite at step {step}, {self.skipped_in_a_row} in a "
                f"row (allowed: guard.max_skipped_in_a_row={self.config.max_skipped_in_a_row}); "
                "no weight was changed; lower optim.lr or look at the batch in the sample log"
            )
        return True
