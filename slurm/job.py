"""The tasks of jobs. They are pickled by reference, so a job runs the code of its snapshot."""

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

# SLURM and `slurm.queue.save_and_stop` send these; `health.stopping` handles them in training.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)


@dataclass(frozen=True)
class TrainJob:
    """One rank of a training run. The run directory holds everything else that the rank needs."""

    run_dir: str
    grace_s: int = 0

    def __call__(self) -> int:
        """Train and return the exit status of this rank; `slurm.supervise` decides what follows.

        Under SLURM a failed rank raises SystemExit, so that srun ends the others and the job does
        not count as a success.
        """
        run_dir = Path(self.run_dir)
        if os.environ.get("SUBMITIT_EXECUTOR") != "slurm":
            return self._train(run_dir, None)
        rank = int(os.environ["SLURM_PROCID"])
        mark = RankMark(rank=rank, node=queue.own_node(), attempt=queue.own_attempt())
        mark.write(run_dir)

        def leave_early(number: int, frame: FrameType | None) -> None:
            # There is nothing to save outside of training.
            mark.left(run_dir, RESUMABLE)
            raise SystemExit(RESUMABLE)

        # Submitit installed its handlers before this call: they ignore SIGTERM and, on SIGUSR2, end
        # a job that is "not checkpointable".
        for number in _SIGNALS:
            signal.signal(number, leave_early)
        os.environ[ATTEMPT_VARIABLE] = mark.attempt
        try:
            if rank == 0:
                supervise.note_lost_attempt(run_dir)
            status = self._train(run_dir, self._deadline() if rank == 0 else None)
        except Exception as error:  # training returns a status for the errors it reports itself
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

        # srun ends its own tasks, so only a local rank watches its launcher.
        is_local = os.environ.get("SUBMITIT_EXECUTOR") == "local"
        return run(run_dir, deadline, launched=is_local)

    def _deadline(self) -> float | None:
        """The time at which to save if the signal of the time limit does not arrive."""
        try:
            limit = judge.ends_at(queue.describe(queue.own_job_id()))
        except (OSError, subprocess.TimeoutExpired):  # a container may lack SLURM's commands
            return None
        return None if limit is None else limit - self.grace_s


@dataclass(frozen=True)
class CommandJob:
    """A `vmp` command as its own job, before or after a training run."""

    arguments: tuple[str, ...]
    folder: str
    """The directory of submission, from which relative paths start."""

    def __call__(self) -> int:
        """Run the command and return its status. A failure fails the job, so nothing follows it."""
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # the command inherits that
        command = [sys.executable, "-P", "-m", "pipeline.cli", *self.arguments]
        status = subprocess.run(command, cwd=self.folder, check=False).returncode
        if status:
            raise SystemExit(status)
        return status


@dataclass(frozen=True)
class ShardJob:
    """One of several jobs that claim shards of a planned sharding run."""

    work: str

    def __call__(self) -> int:
        """Write shards and return their number. Other jobs take over the claims of a killed one."""
        # The decoding processes inherit this. If they died before this process did, it would
        # conclude that their current clips crash the decoder.
        for number in _SIGNALS:
            signal.signal(number, signal.SIG_IGN)
        from data_prep.jobs.job import run_shard_worker

        cpus = os.environ.get("SLURM_CPUS_PER_TASK")
        return run_shard_worker(Path(self.work), decoders=int(cpus) if cpus else None)
