"""`vmp submit`: submission of one run, a sweep over overrides, or a chain of commands."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import exits, rundir
from pipeline.commands.finished import finished
from pipeline.commands.program import vmp
from pipeline.config import RunConfig, load_config
from pipeline.prepare import check_same_run, check_start, prepare_run
from pipeline.rundir.metrics import read_metrics
from pipeline.terminal import say
from pipeline.training import aftermath
from pipeline.training.ranks import num_gpus
from slurm import launch, queue
from slurm.errors import ClusterError
from slurm.profile import ClusterProfile, load_profile
from slurm.record import Cluster, Resources

# Cores of a rank besides those of its loader workers: for the rank itself and its writing threads.
_OWN_CPUS = 2
# The measured times are multiplied by this, because a file system is slower when many jobs of the
# cluster are told to stop at once.
_SAFETY = 2.0


@dataclass(frozen=True)
class Order:
    """The options of `vmp submit`."""

    cluster: Cluster = "local"
    profile: Path | None = None
    nodes: int = 1
    gpus_per_node: int | None = None
    """GPUs and ranks per node; None = as many as this machine has."""
    follow: bool = True
    dry_run: bool = False
    sweep: Sequence[str] = ()
    """Entries of the form "key=value,value,..."; every combination is a run."""
    parallel: int | None = None
    """How many runs of a sweep may run at the same time; None = all."""
    first: str | None = None
    """A `vmp` command whose job must succeed before training starts."""
    then: str | None = None
    """A `vmp` command whose job starts when training has succeeded."""
    after: str | None = None
    """Id of a job that must succeed first."""


def submit_run(recipe: str, overrides: Sequence[str], order: Order) -> int:
    """Submit what `order` asks for and, with `follow`, wait for it; return the exit status.

    With `dry_run`, print the sbatch script and write nothing. Raises ConfigError or ClusterError
    before anything is submitted.
    """
    configs, profile, resources = check_runs(recipe, overrides, order)
    _warn_without_gpus(resources, order)
    if order.dry_run:
        text = launch.dry_run([config.run_dir for config in configs], profile, resources)
        say(text)
        _say_what_is_unchecked(profile, order)
        return exits.DONE
    if order.cluster == "slurm":
        launch.check_nodes(configs[0].runs_dir, profile, resources)
    if order.first is None and order.then is None:
        configs = _unfinished(configs)
        if not configs:
            return exits.DONE
    if order.cluster == "local":
        return max(_submit_one(config, profile, resources, order) for config in configs)
    if len(configs) == 1:
        return _submit_one(configs[0], profile, resources, order)
    return _submit_array(configs, profile, resources, order)


def check_runs(
    recipe: str, overrides: Sequence[str], order: Order, *, weights_exist: bool = True
) -> tuple[list[RunConfig], ClusterProfile, Resources]:
    """Return the runs that `order` asks for, once each of them can start.

    `weights_exist` is False when a job that is not submitted yet will make the weights to start
    from; so may the job `order.after`.
    Raises ConfigError, DataError or ClusterError, and writes nothing.
    """
    configs = _configs(recipe, overrides, order.sweep)
    profile = load_profile(order.profile)
    resources = _resources(configs[0], profile, order)
    for config in configs:
        _check_cpus(config, resources, profile)
        _check_grace(config, profile)
    _check_order(order, profile)
    for config in configs:
        check_start(
            config,
            resources.nodes * resources.ranks_per_node,
            data_exists=order.first is None and not order.dry_run,
            weights_exist=weights_exist and order.after is None,
        )
    return configs, profile, resources


def _say_ours(line: str) -> None:
    """Print a line of the log unless it is Submitit's own, which only the file keeps."""
    if not line.startswith("submitit INFO ("):
        say(line)


def _unfinished(configs: Sequence[RunConfig]) -> list[RunConfig]:
    """Return the runs that have something left to do, and print a line about each of the others."""
    left = []
    for config in configs:
        summary = finished(config)
        if summary is None:
            left.append(config)
        else:
            say(summary.line(config.run_dir))
    return left


def _submit_one(
    config: RunConfig, profile: ClusterProfile, resources: Resources, order: Order
) -> int:
    run_dir = config.run_dir
    submission = launch.find_running(run_dir)
    if submission is not None:
        how = "already submitted"
        check_same_run(run_dir, config)
    else:
        how = "submitted"
        if order.cluster == "local":  # a SLURM job waits for the lock of a lost node instead
            rundir.refuse_active(run_dir)
        prepare_run(config)
        dependency = _dependency(run_dir, profile, order)
        (submission,) = launch.submit(
            [run_dir],
            order.cluster,
            profile,
            resources,
            dependency=dependency,
            then=order.then,
        )
    where = f"({order.cluster}), run {run_dir}, log {submission.log}"
    say(f"{how}: job {submission.job_id} {where}")
    follower = launch.submit_follower(submission) if how == "submitted" else None
    if follower is not None:
        say(follower)
    if not order.follow:
        return exits.DONE
    status = launch.wait(submission, _say_ours)
    if status == exits.RESUMABLE:
        say("stopped with a committed checkpoint; the same command goes on from there")
    elif status != exits.DONE:
        say(f"run {run_dir} ended: {aftermath.explain(run_dir)}", err=True)
    return status


def _submit_array(
    configs: Sequence[RunConfig], profile: ClusterProfile, resources: Resources, order: Order
) -> int:
    """Submit a sweep as one SLURM array, without waiting, and leave out runs that have a job."""
    run_dirs = [prepare_run(c) for c in configs if launch.find_running(c.run_dir) is None]
    for config in configs:
        if config.run_dir not in run_dirs:
            say(f"already submitted: run {config.run_dir}")
    if not run_dirs:
        return exits.DONE
    submissions = launch.submit(
        run_dirs,
        order.cluster,
        profile,
        resources,
        dependency=f"afterok:{order.after}" if order.after else None,
        parallel=order.parallel,
    )
    for submission in submissions:
        say(f"submitted: job {submission.job_id} (slurm), run {submission.run_dir}")
    say(f"watch them: {vmp()} jobs list --runs {configs[0].runs_dir}")
    return exits.DONE


def _dependency(run_dir: Path, profile: ClusterProfile, order: Order) -> str | None:
    """Submit the first command of the chain, if any, and return the training's dependency."""
    before = [order.after] if order.after else []
    if order.first is not None:
        job_id = launch.submit_command(
            launch.split_command(order.first),
            run_dir,
            profile,
            Resources(cpus_per_task=profile.cpus_per_task or 1),
            dependency=f"afterok:{order.after}" if order.after else None,
        )
        say(f"submitted: job {job_id} (slurm), vmp {order.first}")
        before = [job_id]
    return f"afterok:{':'.join(before)}" if before else None


def _check_order(order: Order, profile: ClusterProfile) -> None:
    needs_slurm = {
        "--dry-run shows the sbatch text: it": order.dry_run,
        "--first, --then and --after chain SLURM jobs: they": order.first
        or order.then
        or order.after,
    }
    for what, asked in needs_slurm.items():
        if asked and order.cluster != "slurm":
            raise ClusterError(f"{what} needs --cluster slurm".replace("they needs", "they need"))
    if profile.container is not None and order.first and "--cluster slurm" in order.first:
        raise ClusterError(
            "--first with --cluster slurm would call sbatch inside the container: shard first, and "
            "give its job to --after"
        )
    if order.sweep and (order.first or order.then):
        raise ClusterError("--first and --then go with one run, not with --sweep: use --after")
    for command in (order.first, order.then):
        if command is not None:
            launch.split_command(command)


def _configs(recipe: str, overrides: Sequence[str], sweep: Sequence[str]) -> list[RunConfig]:
    """Return one run, or one for each combination of the sweep, named after its values."""
    axes = []
    for text in sweep:
        key, separator, values = text.partition("=")
        if not separator or not values:
            raise ClusterError(f"--sweep '{text}' must have the form section.field=value,value,...")
        axes.append([f"{key}={value}" for value in values.split(",")])
    base = load_config(recipe, overrides)
    if not axes:
        return [base]
    name = base.name
    named: dict[str, tuple[str, ...]] = {}
    for changes in itertools.product(*axes):
        other = named.setdefault(f"{name}{_suffix(changes)}", changes)
        if other is not changes:
            raise ClusterError(
                f"--sweep: {' '.join(other)} and {' '.join(changes)} would both be run "
                f"{name}{_suffix(changes)}: leave out one, or submit them one by one with name=..."
            )
    return [
        load_config(recipe, [*overrides, *changes]).model_copy(update={"name": of_run})
        for of_run, changes in named.items()
    ]


def _suffix(changes: Sequence[str]) -> str:
    """Return the suffix of a run's name, such as -lr_1e-3-seed_2 for optim.lr=1e-3 and seed=2."""
    pairs = (change.split("=", 1) for change in changes)
    parts = (f"{key.rpartition('.')[2]}_{value}" for key, value in pairs)
    return "".join(f"-{re.sub(r'[^A-Za-z0-9_.+-]', '', part)}" for part in parts)


def _resources(config: RunConfig, profile: ClusterProfile, order: Order) -> Resources:
    here = num_gpus() if order.gpus_per_node is None else order.gpus_per_node
    return Resources(
        nodes=order.nodes,
        ranks_per_node=here or config.launch.ranks_per_node or 1,
        gpus_per_node=here,
        cpus_per_task=profile.cpus_per_task or config.data.workers + _OWN_CPUS,
    )


def _say_what_is_unchecked(profile: ClusterProfile, order: Order) -> None:
    """Say what only the cluster can check, when this machine has no SLURM."""
    if queue.is_here():
        return
    where = f"partition '{profile.partition}'" if profile.partition else "the default partition"
    say(
        f"not checked, as this machine has no SLURM: whether {where} exists, whether it has "
        f"{order.nodes} usable nodes, and which nodes failed a run recently and would be avoided",
        err=True,
    )


def _warn_without_gpus(resources: Resources, order: Order) -> None:
    """Warn that a job gets no GPU by default when this machine, such as a login node, has none."""
    if order.cluster == "slurm" and order.gpus_per_node is None and not resources.gpus_per_node:
        say(
            "warning: this machine has no GPU, so none is requested: the run trains on CPUs; give "
            "--gpus-per-node (0 if that is meant)",
            err=True,
        )


def _check_grace(config: RunConfig, profile: ClusterProfile) -> None:
    """Raise ClusterError if `grace_s` is too short for the step and save times of earlier logs."""
    logged = reversed(read_metrics(config.run_dir))
    measured = next((row for row in logged if {"save_s", "step_s_p95"} <= row.keys()), None)
    if measured is None:
        return
    step_s, save_s = measured["step_s_p95"], measured["save_s"]
    needed_s = _SAFETY * (step_s + save_s)
    if profile.grace_s < needed_s:
        raise ClusterError(
            f"grace_s={profile.grace_s}: run {config.run_dir} needs {step_s:.0f} s for a step "
            f"and {save_s:.0f} s to commit a checkpoint; give the "
            f"profile grace_s: {math.ceil(needed_s)} or more"
        )


def _check_cpus(config: RunConfig, resources: Resources, profile: ClusterProfile) -> None:
    if config.data.workers > resources.cpus_per_task:
        raise ClusterError(
            f"data.workers={config.data.workers} loader processes per rank on "
            f"cpus_per_task={profile.cpus_per_task} cores: the GPU would wait for data; give the "
            f"profile cpus_per_task: {config.data.workers + _OWN_CPUS} or leave it out"
        )
