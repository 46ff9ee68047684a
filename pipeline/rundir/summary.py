"""summary.json: the result of a finished run."""

from __future__ import annotations

import math
from pathlib import Path

from pydantic import Field

from pipeline.rundir import records
from pipeline.rundir.paths import SUMMARY_FILE
from pipeline.rundir.records import Number, Record


class Summary(Record):
    """The result of a finished run."""

    top1: Number = Field(default=math.nan, exclude_if=math.isnan)
    """Fraction of the validation videos whose label is the most probable class, in [0, 1]; NaN for
    a task that does not classify."""
    top5: Number = math.nan
    similarity: Number = Field(default=math.nan, exclude_if=math.isnan)
    """Mean cosine between the features of student and teacher in masked pre-training."""
    loss: float | None = Field(default=None, exclude_if=lambda loss: loss is None)
    """Mean loss over the validation videos, kept only where it is not finite."""
    num_samples: int
    """Number of validation videos."""
    steps: int
    epochs: Number = math.nan
    checkpoint: Path
    """Path of the last checkpoint at the time when the run ended."""
    mlflow_run_id: str | None = None
    wall_s: Number = math.nan
    """Training time of all attempts, in seconds."""

    def score(self) -> str:
        """Return what was achieved, such as `top-1 91.2%`."""
        if math.isnan(self.similarity):
            return f"top-1 {self.top1:.1%}"
        return f"similarity {self.similarity:.3f} with the teacher's features"

    def line(self, run_dir: Path) -> str:
        """Return a line for a user who starts the run again."""
        doubt = "" if self.loss is None else f", with a validation loss of {self.loss}"
        return (
            f"run {run_dir} is finished: {self.score()} of {self.num_samples} validation "
            f"videos after {self.steps} steps{doubt}; to train again choose another name=..."
        )


def write_summary(run_dir: Path, summary: Summary) -> None:
    records.write(run_dir / SUMMARY_FILE, summary)


def read_summary(run_dir: Path) -> Summary | None:
    """Return the summary; None before the end of the run, or when the file is invalid."""
    return records.read(run_dir / SUMMARY_FILE, Summary)
