"""The start of a run: its directory is made, or found to belong to the same run."""

from __future__ import annotations

from pathlib import Path

from pipeline import provenance, rundir
from pipeline.config import RunConfig, config_difference, read_config
from pipeline.errors import ConfigError
from pipeline.rundir import durable
from pipeline.rundir.private import set_umask
from pipeline.tracking import hand_on_secrets, resolve_uri


def prepare_run(config: RunConfig) -> Path:
    """Make the run directory, or check that the one that exists belongs to the same run.

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
            check_same_run(run_dir, config)
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
    difference = config_difference(read_config(run_dir), config)
    if difference:
        raise ConfigError(
            f"run directory {run_dir} holds a run with another configuration "
            f"({'; '.join(difference)}): choose another name=... or remove it"
        )
