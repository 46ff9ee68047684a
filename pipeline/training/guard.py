"""Non-finite loss or gradients: the same decision on every rank, before any weight is touched."""

from __future__ import annotations

import torch

from pipeline.errors import NonFiniteError
from pipeline.training.config import GuardConfig
from pipeline.training.distributed import any_rank


class NonFiniteGuard:
    """Counts the steps that had to be skipped."""

    def __init__(self, config: GuardConfig) -> None:
        self.config = config
        self.skipped_in_a_row = 0
        self.skipped = 0

    def rejects(self, step: int, loss: torch.Tensor, gradients_finite: torch.Tensor) -> bool:
        """True when the step must be discarded. Collective; reads the device once.

        Raises NonFiniteError, on all ranks alike, when too many steps in a row were bad.
        """
        bad_here = not bool(torch.isfinite(loss).all() & gradients_finite)
        if not any_rank(bad_here):
            self.skipped_in_a_row = 0
            return False
        self.skipped += 1
        self.skipped_in_a_row += 1
        if self.skipped_in_a_row > self.config.max_skipped_in_a_row:
            raise NonFiniteError(
                f"loss or gradients are not finite at step {step}, {self.skipped_in_a_row} in a "
                f"row (allowed: guard.max_skipped_in_a_row={self.config.max_skipped_in_a_row}); "
                "no weight was changed; lower optim.lr or look at the batch in the sample log"
            )
        return True
