"""From a prepared run directory to its outcome; `python -m pipeline.train RUN_DIR` is one rank."""

from __future__ import annotations

import logging
import sys
import traceback
from contextlib import ExitStack
from pathlib import Path

from pipeline import distributed, exits
from pipeline.assemble import assemble
from pipeline.checkpoint import durable
from pipeline.distributed import World
from pipeline.health.stopping import Stopper
from pipeline.record import rundir
from pipeline.trainer import Outcome, Trainer

logger = logging.getLogger(__name__)


def train(run_dir: Path) -> tuple[Outcome, str]:
    """Train, or go on training, the run of a prepared directory. Collective: call on every rank.

    Returns how it ended and, when this rank was asked to stop, by what.
    """
    config = rundir.read_config(run_dir)
    with Stopper(config.stop) as stopper, ExitStack() as stack:
        world = distributed.join(timeout_s=config.engine.init_timeout_s)
        stack.callback(distributed.leave)
        _log_to_stderr(world)
        distributed.on_main(lambda: stack.enter_context(rundir.exclusive(run_dir)) and None)
        trainer = assemble(config, run_dir, world, stopper, stack)
        outcome = trainer.fit()
        if outcome is Outcome.FINISHED and world.is_main:
            write_summary(trainer, run_dir)
        return outcome, stopper.reason or ""


def write_summary(trainer: Trainer, run_dir: Path) -> None:
    """summary.json: the result of a finished run."""
    state = trainer.state()
    metrics = state.metrics
    durable.write_json(
        run_dir / rundir.SUMMARY_FILE,
        {
            "top1": metrics["top1"],
            "top5": metrics["top5"],
            "num_samples": int(metrics["num_samples"]),
            "steps": state.step,
            "epochs": state.step / trainer.steps_per_epoch,
            "checkpoint": str(trainer.saver.path_of(state.step)),
            "mlflow_run_id": trainer.recorder.mlflow_run_id(),
            "wall_s": round(state.elapsed_s, 3),
        },
    )


def run(run_dir: Path) -> int:
    """`train` as an exit status; rank 0 leaves the state of the run in status.json."""
    main = distributed.is_main_by_environment()
    if main:
        rundir.write_status(run_dir, "running")
    try:
        outcome, reason = train(run_dir)
    except exits.USER_ERRORS as error:
        print(f"error: {error}", file=sys.stderr)
        return _end(run_dir, main, "failed", exits.BAD_INPUT, str(error))
    except Exception as error:  # the boundary of the process: report, then fail
        traceback.print_exc()
        return _end(run_dir, main, "failed", exits.FAILED, f"{type(error).__name__}: {error}")
    if outcome is Outcome.STOPPED:
        return _end(run_dir, main, "stopped", exits.RESUMABLE, reason or "another rank was asked")
    return _end(run_dir, main, "finished", exits.DONE, "")


def _end(run_dir: Path, main: bool, state: str, status: int, reason: str) -> int:
    if main:
        rundir.write_status(run_dir, state, exit_status=status, reason=reason)
    return status


def _log_to_stderr(world: World) -> None:
    logging.basicConfig(
        level=logging.INFO if world.is_main else logging.WARNING,
        format=f"%(asctime)s rank{world.rank} %(message)s",
        datefmt="%H:%M:%S",
        stream=sys.stderr,
        force=True,
    )


if __name__ == "__main__":
    raise SystemExit(run(Path(sys.argv[1])))
