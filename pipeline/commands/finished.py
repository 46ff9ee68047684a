"""Recognition of a finished run by its files, without starting any rank."""

from __future__ import annotations

from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.config import RunConfig
from pipeline.errors import CheckpointError
from pipeline.open_data import data_digest, open_data
from pipeline.prepare import check_same_run
from pipeline.rundir import State
from pipeline.rundir.paths import TRACKING_PENDING_FILE
from pipeline.rundir.summary import Summary, read_summary


def finished(config: RunConfig) -> Summary | None:
    """Return the summary of the run if starting it again would change nothing, else None.

    The result is None also when the last checkpoint is damaged or MLflow lacks rows, because a new
    attempt repairs both.
    Raises ConfigError when the directory holds another run, and DataError when the shards cannot be
    opened.
    """
    run_dir = config.run_dir
    if rundir.read_status(run_dir).state is not State.FINISHED:
        return None
    if (run_dir / TRACKING_PENDING_FILE).exists():
        return None
    check_same_run(run_dir, config)
    summary = read_summary(run_dir)
    if summary is None:
        return None
    try:
        # Only the name of the stored path counts, because the run directory may have been moved.
        checkpoint = run_dir / rundir.CHECKPOINTS / summary.checkpoint.name
        layout.verify(checkpoint)
        state = layout.read_state(checkpoint)
    except CheckpointError:
        return None
    return summary if state.data_digest == data_digest(*open_data(config)) else None
