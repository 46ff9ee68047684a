"""Start the ranks of one machine with torch's elastic launcher and wait for them."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from pipeline import exits, rundir
from pipeline.terminal import say
from pipeline.training import aftermath, local_rendezvous


def run_ranks(run_dir: Path, ranks: int) -> int:
    """Train a prepared run with `ranks` local processes and return the exit status of the run."""
    local_rendezvous.register()
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=ranks,
        rdzv_backend=local_rendezvous.BACKEND,
        run_id=f"{run_dir.name}-{os.getpid()}",
        max_restarts=0,
        monitor_interval=0.2,
    )
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "pipeline.training.train", str(run_dir))
    except (ChildFailedError, SignalException):
        # Rank 0 wrote the status of the run, but another rank's failure may have caused its own.
        say(f"run {run_dir} ended: {aftermath.explain(run_dir)}", err=True)
        status = rundir.read_status(run_dir).exit_status
        return exits.FAILED if status is None else status
    return exits.DONE
