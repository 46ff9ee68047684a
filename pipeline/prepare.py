"""The start of a run: a check that it can work, and the preparation of its directory."""

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


def check_start(
    config: RunConfig, num_ranks: int, *, data_exists: bool = True, weights_exist: bool = True
) -> None:
    """Raise the error that the run's ranks would raise, before the run directory is made.

    `data_exists` and `weights_exist` are False when an earlier job will make the shards, or the
    weights to start from and the teacher.
    Raises ConfigError or DataError, and CheckpointError or WeightsError for `init_from` and for the
    teacher of the task.
    """
    config.batch_split(num_ranks)
    if not data_exists:
        return
    starts_anew = not rundir.committed(config.run_dir / rundir.CHECKPOINTS)
    if config.init_from is not None and starts_anew and weights_exist:
        # This import loads torch, so it is made only for runs that start from weights.
        from pipeline.checkpoint.source import check_start_weights

        check_start_weights(config.init_from, config.model)
    if config.task.kind != "classification" and weights_exist:
        from pipeline.training.tasks.teacher import check_teacher

        check_teacher(config)
    train, val = open_data(config)
    for shards in (train, val):
        shards.require_samples(labelled=config.task.needs_labels)
    if config.data.reader == "ffcv":
        # This import loads torch, so it is made only for runs that read from a cache.
        from pipeline.data.ffcv.cache import open_fitting_cache

        model = config.model
        open_fitting_cache(config.data, train, num_frames=model.num_frames, img_size=model.img_size)


def prepare_run(config: RunConfig) -> Path:
    """Make the run directory, or check that an existing one belongs to the same run.

    A run without a committed checkpoint is replaced by a run of another configuration.
    Raises ConfigError when the directory cannot be written, when the secret of the tracking URI is
    missing, or when the directory holds another configuration, whose difference is listed.
    """
    run_dir = config.run_dir
    if config.tracking.enabled:
        resolve_uri(config.tracking, config.runs_dir)
        hand_on_secrets(config.tracking)
    set_umask(private=config.private)
    try:
        (run_dir / rundir.LOGS).mkdir(parents=True, exist_ok=True)
        if config.private:  # the directory may be older than this setting
            run_dir.chmod(0o700)
        if (run_dir / rundir.CONFIG_FILE).exists():
            if rundir.committed(run_dir / rundir.CHECKPOINTS) or rundir.is_active(run_dir):
                check_same_run(run_dir, config)
            elif not _is_same_run(run_dir, config):
                _begin_anew(run_dir)
        rundir.forget_failures(run_dir)
        # Each attempt may change fields that do not affect the result: ranks, logging, saving.
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
    """Raise ConfigError, which lists the difference, if the directory holds another run."""
    if difference := config_difference(read_config(run_dir), config):
        raise ConfigError(
            f"run directory {run_dir} holds a run with another configuration {refusal(difference)}"
        )


def _is_same_run(run_dir: Path, config: RunConfig) -> bool:
    try:
        return not config_difference(read_config(run_dir), config)
    except ConfigError:  # the file was cut short before anything was trained
        return False


def _begin_anew(run_dir: Path) -> None:
    """Delete the MLflow id, provenance, starts and rollbacks of a run that has no checkpoint.

    The new run needs a new MLflow run, because MLflow cannot change the parameters of one. Metrics
    and sample logs are cut by the training itself.
    """
    of_that_run = (rundir.PROVENANCE_FILE, rundir.STARTS_FILE, rundir.ROLLBACKS_FILE)
    for name in (TRACKING_ID_FILE, TRACKING_PENDING_FILE, *of_that_run):
        (run_dir / name).unlink(missing_ok=True)
