"""A run that has reached its end: known from its files, so that no rank starts to find it out."""

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
    """The summary of the run when starting it again would change nothing, else None.

    None also when its last checkpoint is damaged or MLflow has not got all rows yet: what a new
    attempt would mend. Raises ConfigError when the directory holds another run, DataError when the
    shards cannot be opened.
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
        # By its name: a run directory may have been moved since.
        checkpoint = run_dir / rundir.CHECKPOINTS / summary.checkpoint.name
        layout.verify(checkpoint)
        state = layout.read_state(checkpoint)
    except CheckpointError:
        return None
    return summary if state.data_digest == data_digest(*open_data(config)) else None
