"""A run that has reached its end: known from its files, so that no rank starts to find it out."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError
from pipeline.open_data import data_digest, open_data
from pipeline.prepare import check_same_run
from pipeline.tracking import PENDING_FILE


class Summary(BaseModel):
    """What we read of summary.json."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    top1: float
    num_samples: int
    steps: int
    checkpoint: Path
    mlflow_run_id: str | None = None

    def line(self, run_dir: Path) -> str:
        """For the user who asks for the run again."""
        return (
            f"run {run_dir} is finished: top-1 {self.top1:.1%} of {self.num_samples} validation "
            f"videos after {self.steps} steps; to train again choose another name=..."
        )


def finished(config: RunConfig) -> Summary | None:
    """The summary of the run when starting it again would change nothing, else None.

    None also when its last checkpoint is damaged or MLflow has not got all rows yet: what a new
    attempt would mend. Raises ConfigError when the directory holds another run, DataError when the
    shards cannot be opened.
    """
    run_dir = config.run_dir
    if rundir.read_status(run_dir).get("state") != "finished" or (run_dir / PENDING_FILE).exists():
        return None
    check_same_run(run_dir, config)
    try:
        summary = Summary.model_validate_json((run_dir / rundir.SUMMARY_FILE).read_bytes())
        # By its name: a run directory may have been moved since.
        checkpoint = run_dir / rundir.CHECKPOINTS / summary.checkpoint.name
        layout.verify(checkpoint)
        state = layout.read_state(checkpoint)
    except (OSError, ValidationError, CheckpointError):
        return None
    same = state.config_digest == config.digest() and state.data_digest == data_digest(
        *open_data(config)
    )
    return summary if same else None
