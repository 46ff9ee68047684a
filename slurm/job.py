"""What a task of a job does. Pickled by reference: the code that runs is the one on disk."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class TrainJob:
    """One rank of a training run; the run directory holds everything else it needs to know."""

    run_dir: str

    def __call__(self) -> int:
        """Exit status of this rank, see `pipeline.exits`."""
        from slurm.executor import rank_environment

        os.environ.update(rank_environment())
        from pipeline.train import run

        return run(Path(self.run_dir))
