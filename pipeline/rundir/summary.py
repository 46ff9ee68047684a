"""summary.json: the result of a finished run."""

from __future__ import annotations

import math
from pathlib import Path

from pipeline.rundir import records
from pipeline.rundir.paths import SUMMARY_FILE
from pipeline.rundir.records import Number, Record


class Summary(Record):
    """What a run has come to."""

    top1: Number
    """Share of the validation videos whose label is the most probable class, 0 to 1."""
    top5: Number = math.nan
    loss: float | None = None
    """Mean over the validation videos; None in summaries of earlier versions."""
    num_samples: int
    """Validation videos."""
    steps: int
    epochs: Number = math.nan
    checkpoint: Path
    """The last one, where it was when the run ended."""
    mlflow_run_id: str | None = None
    wall_s: Number = math.nan
    """Training time of all attempts."""

    def line(self, run_dir: Path) -> str:
        """For the user who asks for the run again."""
        lost = self.loss is not None and not math.isfinite(self.loss)
        doubt = f", with a validation loss of {self.loss}" if lost else ""
        return (
            f"run {run_dir} is finished: top-1 {self.top1:.1%} of {self.num_samples} validation "
            f"videos after {self.steps} steps{doubt}; to train again choose another name=..."
        )


def write_summary(run_dir: Path, summary: Summary) -> None:
    records.write(run_dir / SUMMARY_FILE, summary)


def read_summary(run_dir: Path) -> Summary | None:
    """None before the end of the run, or when the file is not whole."""
    return records.read(run_dir / SUMMARY_FILE, Summary)
