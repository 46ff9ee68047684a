"""What a task of a job does. Pickled by reference: the code that runs is the job's snapshot."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from pipeline.rundir import Failure, RankMark, StopClass
from pipeline.rundir.attempts import ATTEMPT_VARIABLE
from pipeline.rundir.exits import FAILED, RESUMABLE
from slurm import judge, queue, supervise

# What SLURM and `slurm.queue.save_and_stop` send; `health.stopping` takes over during training.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True)
class TrainJob:
    """One rank of a training run; the run directory holds everything else it needs to know."""

    run_dir: str
    grace_s: int = 0

    def __call__(self) -> int:
        """Exit status of this rank; `slurm.supervise` decides what follows.

        Under SLURM a failed rank raises SystemExit, so that srun ends the others and the job is
        not taken for a success.
        """
        run_dir = Path(self.run_dir)
        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
            return self._train(run_dir, None)
        rank = int(os.environ["SLURM_PROCID"])
        mark = RankMark(rank=rank, node=queue.own_node(), attempt=queue.own_attempt())
        mark.write(run_dir)

        def leave_early(number: int, frame: FrameType | None) -> None:
            # Outside of training nothing is to be saved.
            mark.left(run_dir, RESUMABLE)
            raise SystemExit(RESUMABLE)

        # Submitit's handlers, installed before this call, drop SIGTERM and end the job at SIGUSR2
        # when it is "not checkpointable".
        for number in _SIGNALS:
            signal.signal(number, leave_early)
        os.environ[ATTEMPT_VARIABLE] = mark.attempt
        try:
            if rank == 0:
                supervise.note_lost_attempt(run_dir)
            status = self._train(run_dir, self._deadline() if rank == 0 else None)
        except Exception as error:  # what training reports by itself does not come here
            Failure.of(rank, error, StopClass.CRASH).write(run_dir)
            mark.left(run_dir, FAILED)
            raise
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        mark.left(run_dir, status)
        if status not in (0, RESUMABLE):
            raise SystemExit(status)
        return status

    def _train(self, run_dir: Path, deadline: float | None) -> int:
        from slurm.executor import rank_environment

        os.environ.update(rank_environment())
        from pipeline.training.train import run

        is_local = os.environ.get("SUBMITIT_EXECUTOR") == "local"  # srun ends its tasks itself
        return run(run_dir, deadline, launched=is_local)

    def _deadline(self) -> float | None:
        """When to save, should the signal of the time limit not arrive."""
        try:
            limit = judge.ends_at(queue.describe(queue.own_job_id()))
        except (OSError, subprocess.TimeoutExpired):  # in a container without SLURM's commands
            return None
        return None if limit is None else limit - self.grace_s


@dataclass(frozen=True)
class CommandJob:
    """A `vmp` command as a job of its own: what comes before or after a training."""

    arguments: tuple[str, ...]
    folder: str
    """Where it was submitted: relative paths start there."""

    def __call__(self) -> int:
        """Exit status of the command; a failure fails the job, so that nothing follows it."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the child inherits it
        command = [sys.executable, "-P", "-m", "pipeline.cli", *self.arguments]
        status = subprocess.run(command, cwd=self.folder, check=False).returncode
        if status:
            raise SystemExit(status)
        return status


@dataclass(frozen=True)
class ShardJob:
    """One of the jobs that claim shards of a planned sharding run."""

    work: str

    def __call__(self) -> int:
        """Shards written. Safe to kill at any time; others take over what it has claimed."""
        # The decoding processes inherit this. They must not die before this one does: it would
        # take the clips in their hands for files that crash a decoder.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        from data_prep.jobs.job import run_shard_worker

        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        return run_shard_worker(Path(self.work), decoders=int(cpus) if cpus else None)
