"""What a task of a job does. Pickled by reference: the code that runs is the one on disk."""

from __future__ import annotations

import logging
import os
import signal
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from slurm import queue

logger = logging.getLogger(__name__)

# What SLURM and `slurm.queue.save_and_stop` send; `health.stopping` takes over during training.
_SIGNALS = (signal.SIGUSR2, signal.SIGTERM)
# sysexits' "temporary failure, try again": stopped early with a committed checkpoint.
_RESUMABLE = os.EX_TEMPFAIL


@dataclass(frozen=True)
class TrainJob:
    """One rank of a training run; the run directory holds everything else it needs to know."""

    run_dir: str
    max_requeues: int = 0

    def __call__(self) -> int:
        """Exit status of this rank, see `pipeline.exits`.

        A run that was stopped under SLURM goes back into the queue: by rank 0, once, when its
        checkpoint is committed and all ranks have agreed to end.
        """
        from slurm.executor import rank_environment

        on_slurm = os.environ.get("SUBMITIT_EXECUTOR") == "slurm"
        if on_slurm:
            # Submitit's handlers, installed before this call, drop SIGTERM and end the job at
            # SIGUSR2 when it is "not checkpointable".
            for number in _SIGNALS:
                signal.signal(number, self._leave_early)
        os.environ.update(rank_environment())
        from pipeline.train import run

        status = run(Path(self.run_dir))
        if on_slurm and status == _RESUMABLE:
            self._requeue()
        return status

    def _leave_early(self, number: int, frame: FrameType | None) -> None:
        """A signal outside of training: nothing is to be saved, so leave at once."""
        self._requeue()
        raise SystemExit(_RESUMABLE)

    def _requeue(self) -> None:
        for number in _SIGNALS:  # requeueing kills this job: not again for that
            signal.signal(number, signal.SIG_IGN)
        if os.environ["SLURM_PROCID"] != "0":
            return
        job_id = os.environ["SLURM_JOB_ID"]
        refusal = queue.requeue(job_id, max_requeues=self.max_requeues)
        if refusal is None:
            logger.warning("job %s goes back into the queue", job_id)
        else:
            logger.warning("job %s is not requeued: %s", job_id, refusal)


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
