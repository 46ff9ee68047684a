"""The entry point of a rank: train the run of a prepared directory and record how it ends.

`python -m pipeline.training.train RUN_DIR` runs one rank.
"""

from __future__ import annotations

import logging
import math
import os
import socket
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path

from pipeline import exits, rundir
from pipeline.config import read_config
from pipeline.health import preflight
from pipeline.health.failure import record_failure, timed_out
from pipeline.health.heartbeat import HeartbeatWriter
from pipeline.health.parent import stop_with_parent
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.health.watchdog import Watchdog, call_for_stacks
from pipeline.isolation import set_umask
from pipeline.rundir import (
    End,
    Failure,
    RunInUseError,
    State,
    StopClass,
    attempt_id,
    forget_heartbeats,
)
from pipeline.rundir.paths import collective_traces, rank_log_file
from pipeline.rundir.summary import Summary, write_summary
from pipeline.terminal import SafeFormatter, one_line, say
from pipeline.training import distributed
from pipeline.training.assemble import assemble
from pipeline.training.distributed import World
from pipeline.training.ranks import rank_by_environment
from pipeline.training.trainer import Trainer

logger = logging.getLogger(__name__)


def train(run_dir: Path, deadline: float | None = None) -> End:
    """Start or resume the run of a prepared directory. Collective: call on every rank.

    Rank 0 must hold the lock of the run, `rundir.exclusive`.

    Args:
        deadline: when to stop and save, in seconds since the Unix epoch; None = never.
    Returns how the attempt ended: FINISHED, or why it was stopped.
    """
    config = read_config(run_dir)
    set_umask(private=config.private)
    pulse = Pulse(rank_by_environment())
    with Stopper(config.stop, deadline) as stopper, ExitStack() as stack:
        stack.enter_context(HeartbeatWriter(run_dir, pulse))
        watchdog = Watchdog(
            run_dir,
            pulse,
            config.health,
            lambda failure: _leave_failure(run_dir, failure),
            start_timeout_s=config.engine.init_timeout_s,
        )
        stack.enter_context(watchdog)
        world = distributed.join(
            timeout_s=config.engine.init_timeout_s, traces=collective_traces(run_dir)
        )
        stack.callback(distributed.leave)
        watchdog.heed_others()
        _start_logs(world, run_dir)
        preflight.check(config, run_dir, world)
        distributed.on_main(lambda: forget_heartbeats(run_dir, from_rank=world.size))
        trainer = assemble(config, run_dir, world, stopper, pulse, stack)
        end = trainer.fit()
        if end.stop_class is StopClass.FINISHED and world.is_main:
            summary = summary_of(trainer)
            write_summary(run_dir, summary)
            logger.info(
                "finished: %s of %d validation videos", summary.score(), summary.num_samples
            )
        return end


def summary_of(trainer: Trainer) -> Summary:
    """Return the result of a finished run. Rank 0 only."""
    state = trainer.state()
    metrics = state.metrics
    return Summary(
        top1=metrics.get("top1", math.nan),
        top5=metrics.get("top5", math.nan),
        similarity=metrics.get("similarity", math.nan),
        loss=None if math.isfinite(metrics["loss"]) else metrics["loss"],
        num_samples=int(metrics["num_samples"]),
        steps=state.step,
        epochs=state.step / trainer.steps_per_epoch,
        checkpoint=trainer.saver.path_of(state.step),
        mlflow_run_id=trainer.recorder.mlflow_run_id(),
        wall_s=round(state.elapsed_s, 3),
    )


def run(run_dir: Path, deadline: float | None = None, *, launched: bool = False) -> int:
    """Call `train` and return an exit status; rank 0 records the run's state in status.json.

    `launched` says that the parent is a launcher that waits for this process. The process then
    ends when its parent does.
    """
    if launched:
        stop_with_parent()
    with ExitStack() as lock:
        return _run(run_dir, deadline, lock)


def _run(run_dir: Path, deadline: float | None, lock: ExitStack) -> int:
    rank = rank_by_environment()
    if logging.lastResort is not None:  # it is the only handler until the logs start
        logging.lastResort.setFormatter(SafeFormatter())
    try:
        if rank == 0:
            # Only the owner of the lock may write to the run directory, so rank 0 takes it first.
            lock.enter_context(rundir.exclusive(run_dir))
            rundir.write_status(run_dir, State.RUNNING)
        end = train(run_dir, deadline)
    except Exception as error:  # the process ends here: report the error, then fail
        if isinstance(error, RunInUseError) and not attempt_id():
            say(f"error: {one_line(str(error))}", err=True)
            return exits.BAD_INPUT  # only a SLURM job must leave a record, for its supervisor
        bad_input = exits.is_bad_input(error)
        if bad_input:
            say(f"error: {one_line(str(error))}", err=True)
        else:
            logger.error("this rank has failed", exc_info=True)
        failure = record_failure(run_dir, rank, error)
        if timed_out(error):
            call_for_stacks(run_dir, f"rank {rank} on {failure.host}, which waited too long")
        failed = End(failure.stop_class, str(error) if bad_input else str(failure))
        status = exits.BAD_INPUT if bad_input else exits.FAILED
        return _leave_word(run_dir, rank, State.FAILED, failed, status)
    if end.stop_class is StopClass.FINISHED:
        return _leave_word(run_dir, rank, State.FINISHED, end, exits.DONE)
    return _leave_word(run_dir, rank, State.STOPPED, end, exits.RESUMABLE)


def _leave_failure(run_dir: Path, failure: Failure) -> None:
    end = End(failure.stop_class, str(failure))
    _leave_word(run_dir, failure.rank, State.FAILED, end, exits.FAILED)


def _leave_word(run_dir: Path, rank: int, state: State, end: End, exit_status: int) -> int:
    """Record on rank 0 how the attempt ended, and return `exit_status`."""
    if rank == 0:
        try:
            rundir.write_status(run_dir, state, end, exit_status=exit_status)
        except OSError:  # a full disk may have ended the run; the exit status still tells
            traceback.print_exc()
    return exit_status


def _start_logs(world: World, run_dir: Path) -> None:
    """Send the log of rank 0 and the warnings of all ranks to stderr, and each rank's to its file.

    The file, logs/rank00000.log for rank 0, is complete whatever launched the rank.
    """
    shown = logging.StreamHandler(sys.stderr)
    shown.setLevel(logging.INFO if world.is_main else logging.WARNING)
    kept = logging.FileHandler(rank_log_file(run_dir, world.rank))
    for handler in (shown, kept):
        handler.addFilter(_is_ours_or_a_warning)
        handler.setFormatter(SafeFormatter(f"%(asctime)s rank{world.rank} %(message)s", "%H:%M:%S"))
    logging.basicConfig(level=logging.INFO, handlers=[shown, kept], force=True)
    where = (socket.gethostname(), os.getpid(), world.device)
    logger.info("one of %d ranks: host %s, pid %d, %s", world.size, *where)


def _is_ours_or_a_warning(record: logging.LogRecord) -> bool:
    """Keep this project's records and all warnings; libraries log too much at INFO."""
    ours = record.name.partition(".")[0] in ("model", "pipeline", "slurm", "data_prep", "__main__")
    return ours or record.levelno >= logging.WARNING


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1]), launched=True))
