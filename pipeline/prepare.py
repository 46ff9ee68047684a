"""The start of a run: proven possible, then given its directory, or found to be the one in it."""

from __future__ import annotations

from pathlib import Path

from pipeline import provenance, rundir
from pipeline.config import RunConfig, config_difference, read_config, refusal
from pipeline.errors import ConfigError
from pipeline.isolation import set_umask
from pipeline.open_data import open_data
from pipeline.rundir import durable
from pipeline.rundir.paths import TRACKING_ID_FILE, TRACKING_PENDING_FILE
from pipeline.tracking import hand_on_secrets, resolve_uri


def check_start(config: RunConfig, num_ranks: int, *, data_exists: bool = True) -> None:
    """Refuse a run that its ranks would refuse, before it takes the name of a directory.

    `data_exists`: False when a job that comes first makes the shards.
    Raises ConfigError or DataError.
    """
    config.batch_split(num_ranks)
    if not data_exists:
        return
    train, val = open_data(config)
    train.require_labels()
    val.require_labels()
    if config.data.reader == "ffcv":
        # With torch, which runs from a cache need not avoid: the front door stays light without.
        from pipeline.data.ffcv.cache import open_fitting_cache

        model = config.model
        open_fitting_cache(config.data, train, num_frames=model.num_frames, img_size=model.img_size)


def prepare_run(config: RunConfig) -> Path:
    """Make the run directory, or check that the one that exists belongs to the same run.

    A run that has no committed checkpoint makes way for one of another configuration.
    Raises ConfigError: not writable, a tracking URI whose secret is not there, or an existing run
    with another configuration (the difference is listed).
    """
    run_dir = config.run_dir
    if config.tracking.enabled:
        resolve_uri(config.tracking, config.runs_dir)
        hand_on_secrets(config.tracking)
    set_umask(private=config.private)
    try:
        (run_dir / rundir.LOGS).mkdir(parents=True, exist_ok=True)
        if config.private:  # it may be there from before it was
            run_dir.chmod(0o700)
        if (run_dir / rundir.CONFIG_FILE).exists():
            if rundir.committed(run_dir / rundir.CHECKPOINTS) or rundir.is_active(run_dir):
                check_same_run(run_dir, config)
            elif not _is_same_run(run_dir, config):
                _begin_anew(run_dir)
        rundir.forget_failures(run_dir)
        # Each attempt may change what does not change the result: ranks, logging, saving.
        durable.write_text(run_dir / rundir.CONFIG_FILE, config.to_yaml())
        if not (run_dir / rundir.PROVENANCE_FILE).exists():
            durable.write_json(run_dir / rundir.PROVENANCE_FILE, provenance.collect())
    except OSError as error:
        raise ConfigError(
            f"run directory {run_dir}: cannot be written: {error.strerror}; "
            "set runs_dir=... to a writable directory"
        ) from error
    return run_dir


def check_same_run(run_dir: Path, config: RunConfig) -> None:
    """Raises ConfigError, with the difference, when the directory holds another run."""
    if difference := config_difference(read_config(run_dir), config):
        raise ConfigError(
            f"run directory {run_dir} holds a run with another configuration {refusal(difference)}"
        )


def _is_same_run(run_dir: Path, config: RunConfig) -> bool:
    try:
        return not config_difference(read_config(run_dir), config)
    except ConfigError:  # cut short before anything was trained
        return False


def _begin_anew(run_dir: Path) -> None:
    """Forget what the tracking server and the provenance say of a run that never came to a step.

    MLflow cannot change the parameters of a run. Rows and sample logs begin anew by themselves.
    """
    for name in (TRACKING_ID_FILE, TRACKING_PENDING_FILE, rundir.PROVENANCE_FILE):
        (run_dir / name).unlink(missing_ok=True)
