"""`vmp`: the composition root, the only module that may import all four packages.

Commands import what they need when they run, so that `vmp --help` answers at once.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from data_prep.options import ShardConfig
    from data_prep.schema import Manifest

app = typer.Typer(
    name="vmp",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="VideoMambaPro: shard videos, train on SLURM with DeepSpeed, track in MLflow.",
)
data_app = typer.Typer(no_args_is_help=True, help="Make and inspect shard directories.")
app.add_typer(data_app, name="data")
bench_app = typer.Typer(no_args_is_help=True, help="Measure, each time beside a peer.")
app.add_typer(bench_app, name="bench")
jobs_app = typer.Typer(no_args_is_help=True, help="Watch and end submitted runs.")
app.add_typer(jobs_app, name="jobs")

Recipe = Annotated[str, typer.Argument(help="A .yaml file, or the name of a shipped recipe.")]
Overrides = Annotated[
    list[str] | None, typer.Argument(help="Any field of the recipe: optim.lr=1e-3 ...")
]
Cluster = Literal["local", "slurm"]


def main() -> None:
    """Run a command; bad input becomes one line on stderr and exit status 2."""
    try:
        app()
    except ValueError as error:
        from pipeline import exits

        if not isinstance(error, exits.USER_ERRORS):
            raise
        typer.echo(f"error: {error}", err=True)
        sys.exit(exits.BAD_INPUT)


@data_app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Option(help="Directory for the videos and annotations.csv.")],
    train: Annotated[int, typer.Option(help="Clips of the training split.")] = 6000,
    val: Annotated[int, typer.Option(help="Clips of the validation split.")] = 800,
    seed: int = 0,
) -> None:
    """Render videos whose class is the motion of a letter.

    Example: vmp data synth --out glyphs
    """
    from data_prep.synthetic import SynthOptions, synthesize

    options = SynthOptions(clips_per_split={"train": train, "val": val}, seed=seed)
    typer.echo(synthesize(out, options))


@data_app.command("shard")
def data_shard(
    format: Annotated[str, typer.Option(help="csv, folder, kinetics, ssv2, ucf101 or hmdb51.")],
    videos: Annotated[Path, typer.Option(help="Directory of the videos.")],
    out: Annotated[str, typer.Option(help="Shard directory to make or complete.")],
    annotations: Annotated[Path | None, typer.Option(help="Annotation file or directory.")] = None,
    split: Annotated[str, typer.Option(help="For clips whose annotation names none.")] = "train",
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that claim shards.")] = 1,
    max_missing: Annotated[float, typer.Option(help="Share of clips that may be absent.")] = 0.1,
    fold: Annotated[int, typer.Option(help="Official division of ucf101 and hmdb51.")] = 1,
    clips_per_shard: int = 256,
    copy: Annotated[bool, typer.Option("--copy", help="Keep suitable files as they are.")] = False,
    work: Annotated[Path | None, typer.Option(help="Shared directory, when OUT is a URL.")] = None,
    cluster: Annotated[Cluster, typer.Option(help="slurm: one array of --jobs jobs.")] = "local",
    profile: Annotated[Path | None, typer.Option(help="Cluster profile, YAML.")] = None,
) -> None:
    """Probe, re-encode and pack videos into sealed WebDataset shards; safe to kill and repeat.

    Example: vmp data shard --format folder --videos my_videos --out shards
    """
    from data_prep.clip import EncodeSettings
    from data_prep.options import ShardConfig
    from data_prep.shard import shard

    config = ShardConfig(
        format=format,
        videos=videos,
        annotations=annotations,
        out=out,
        split=split,
        jobs=jobs,
        max_missing=max_missing,
        fold=fold,
        clips_per_shard=clips_per_shard,
        encode=EncodeSettings(copy_suitable=copy),
        work=work,
    )
    manifest = shard(config) if cluster == "local" else _shard_on_slurm(config, profile)
    counts = ", ".join(f"{name} {count}" for name, count in manifest.splits.items())
    typer.echo(f"{out}: {len(manifest.classes)} classes; samples: {counts}")


def _shard_on_slurm(config: ShardConfig, profile: Path | None) -> Manifest:
    """Plan here, work in a SLURM array, seal here."""
    from data_prep.errors import DataError
    from data_prep.progress import progress_bar
    from data_prep.seal import seal
    from data_prep.shard import prepare, sealed
    from pipeline import exits
    from slurm.array import run_array
    from slurm.job import ShardJob
    from slurm.profile import load_profile

    cluster_profile = load_profile(profile)
    work = prepare(config)
    manifest = sealed(work)
    if manifest is not None:
        return manifest
    tasks = [ShardJob(str(work.resolve()))] * config.jobs
    with progress_bar(work):
        outcome = run_array(
            tasks, work / "logs", cluster_profile, name="vmp-shard", announce=typer.echo
        )
    try:
        return seal(work)
    except DataError as error:
        if outcome.all_completed:
            raise
        typer.echo(f"error: {error} ({outcome})", err=True)
        sys.exit(exits.FAILED)


@data_app.command("verify")
def data_verify(
    shards: Annotated[str, typer.Argument(help="Shard directory.")],
    fix: Annotated[bool, typer.Option("--fix", help="Rebuild what is damaged.")] = False,
) -> None:
    """Re-read everything the manifest names and prove it; status 1 when something is wrong.

    Example: vmp data verify shards
    """
    from data_prep.verify import verify

    found = verify(shards, fix=fix)
    for name in found.rebuilt:
        typer.echo(f"rebuilt {name}")
    for finding in found.findings:
        typer.echo(finding)
    state = "unsound" if found.findings else "sound"
    typer.echo(f"{shards}: {state}; {found.shards} shards, {found.samples} samples")
    sys.exit(1 if found.findings else 0)


@data_app.command("report")
def data_report(shards: Annotated[str, typer.Argument(help="Shard directory.")]) -> None:
    """Write a self-contained HTML page about a shard directory.

    Example: vmp data report shards
    """
    from data_prep.report import report

    typer.echo(report(shards))


@data_app.command("cache")
def data_cache(
    shards: Annotated[Path, typer.Argument(help="Shard directory.")],
    out: Annotated[Path, typer.Option(help="Directory for the .beton files.")],
    split: str = "train",
    frames: int = 16,
    size: int = 224,
    quality: Annotated[int, typer.Option(help="Of the JPEG frames; 0 keeps raw pixels.")] = 85,
) -> None:
    """Decode a split once into an FFCV file, for `data.reader=ffcv`.

    Example: vmp data cache shards --out cache
    """
    from pipeline.data.ffcv_cache import CacheOptions, build_cache

    manifest = build_cache(
        shards, split, out, CacheOptions(frames=frames, size=size, quality=quality)
    )
    typer.echo(f"{out / split}.beton: {manifest.model_dump_json(exclude={'source'})}")


@app.command()
def train(
    recipe: Recipe,
    overrides: Overrides = None,
    print_config: Annotated[
        bool, typer.Option("--print-config", help="Print the resolved configuration and stop.")
    ] = False,
) -> None:
    """Train on this machine, one process per device; under torchrun or srun, be one rank.

    Example: vmp train demo optim.lr=1e-3
    """
    from pipeline import rundir
    from pipeline.config import load_config

    config = load_config(recipe, overrides or [])
    if print_config:
        typer.echo(config.to_yaml(), nl=False)
        return
    from pipeline import spawn
    from pipeline.assemble import open_data
    from pipeline.train import run

    open_data(config)  # a wrong path or head is said once, here, before any rank starts
    run_dir = rundir.prepare(config)

    ranks = spawn.ranks_here(config.launch)
    one_process = spawn.inside_launcher() or ranks == 1
    sys.exit(run(run_dir) if one_process else spawn.run_ranks(run_dir, ranks))


@app.command()
def submit(
    recipe: Recipe,
    overrides: Overrides = None,
    cluster: Annotated[Cluster, typer.Option(help="local runs here, through Submitit.")] = "local",
    profile: Annotated[Path | None, typer.Option(help="Cluster profile, YAML.")] = None,
    nodes: Annotated[int, typer.Option(min=1)] = 1,
    gpus_per_node: Annotated[
        int | None, typer.Option(min=0, help="GPUs (and ranks) per node; default: those here.")
    ] = None,
    follow: Annotated[bool, typer.Option(help="Show the log and wait for the end.")] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the sbatch text, submit nothing.")
    ] = False,
) -> None:
    """Submit a training run through Submitit; the same command resumes a run that has stopped.

    Example: vmp submit demo --cluster local
    """
    from pipeline import launch

    status = launch.submit(
        recipe, overrides or [], cluster, profile, nodes, gpus_per_node, follow, dry_run
    )
    sys.exit(status)


RunsDir = Annotated[Path, typer.Option("--runs", help="Directory of the runs.")]


@jobs_app.command("list")
def jobs_list(runs: RunsDir = Path("runs")) -> None:
    """Every run: state, step, loss, last checkpoint, reason of the last stop.

    Example: vmp jobs list --runs runs
    """
    from pipeline.jobs import list_jobs

    for row in list_jobs(runs):
        loss = "-" if row.loss is None else f"{row.loss:.4f}"
        line = f"{row.name}  {row.state}  job {row.job}  step {row.step}  loss {loss}"
        typer.echo(f"{line}  checkpoint {row.checkpoint}  {row.reason}".rstrip())


@jobs_app.command("logs")
def jobs_logs(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    runs: RunsDir = Path("runs"),
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Until the job ends.")] = False,
) -> None:
    """Rank 0's log of the newest job of a run.

    Example: vmp jobs logs demo -f
    """
    from pipeline.jobs import print_log

    print_log(runs / name, typer.echo, follow=follow)


@jobs_app.command("cancel")
def jobs_cancel(
    name: Annotated[str, typer.Argument(help="Name of the run.")],
    runs: RunsDir = Path("runs"),
    save: Annotated[bool, typer.Option("--save", help="Commit a checkpoint first.")] = False,
) -> None:
    """End the job of a run; the same `vmp submit` goes on later.

    Example: vmp jobs cancel demo --save
    """
    from pipeline.jobs import cancel

    typer.echo(cancel(runs / name, save=save))


@app.command("eval")
def eval_command(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory.")],
    data: Annotated[Path, typer.Argument(help="Shard directory.")],
    overrides: Overrides = None,
) -> None:
    """Evaluate a checkpoint: every sample once.

    Example: vmp eval runs/demo demo/shards eval.shuffle_frames=true
    """
    from pipeline.evaluate_checkpoint import evaluate_checkpoint

    result = evaluate_checkpoint(checkpoint, data, overrides or [])
    typer.echo(
        f"top1 {result.top1:.4f}  top5 {result.top5:.4f}  loss {result.loss:.4f}  "
        f"samples {result.num_samples}"
    )


@app.command()
def predict(
    checkpoint: Annotated[Path, typer.Argument(help="A checkpoint, or a run directory.")],
    videos: Annotated[list[Path], typer.Argument(help="Video files of any format.")],
    top: Annotated[int, typer.Option(min=1, help="Classes to show per video.")] = 5,
) -> None:
    """Classify videos.

    Example: vmp predict runs/demo demo/videos/val/000000.mp4
    """
    from pipeline.predict import Predictor

    predictor = Predictor.load(checkpoint)
    for video in videos:
        shown = ", ".join(f"{label} {share:.3f}" for label, share in predictor(video)[:top])
        typer.echo(f"{video}: {shown}")


@app.command()
def convert(
    source: Annotated[Path, typer.Argument(help="Released weights, .pth or .safetensors.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
    model: Annotated[str | None, typer.Option(help="Preset to fit; default: as it is.")] = None,
    num_frames: int | None = None,
    num_classes: int | None = None,
    allow_lossy: Annotated[bool, typer.Option("--allow-lossy")] = False,
) -> None:
    """Bring released VideoMamba or VideoMambaPro weights into this project's format.

    Example: vmp convert videomamba_m16_k400.pth m16.safetensors
    """
    from model import resolve_config
    from model.convert import convert as convert_weights

    fields = {"num_frames": num_frames, "num_classes": num_classes}
    given = {key: value for key, value in fields.items() if value is not None}
    config = resolve_config(model, **given) if model else None
    typer.echo(str(convert_weights(source, out, config, allow_lossy)))


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="A run directory, or a checkpoint.")],
    out: Annotated[Path, typer.Argument(help="The .safetensors file to write.")],
) -> None:
    """Write the weights of a run as one safetensors file with its model configuration.

    Example: vmp export runs/demo demo.safetensors
    """
    from pipeline.predict import export_weights

    typer.echo(export_weights(run, out))


@app.command()
def plan(
    recipe: Recipe,
    overrides: Overrides = None,
    world: Annotated[int, typer.Option(min=1, help="GPUs in all.")] = 8,
) -> None:
    """Parameters, FLOPs, memory per GPU at every ZeRO stage; needs no GPU.

    Example: vmp plan k400_m16_f16 --world 16
    """
    from pipeline.config import load_config
    from pipeline.estimate import print_plan

    print_plan(load_config(recipe, overrides or []), world)


@app.command()
def doctor() -> None:
    """Check this machine: each line is OK or says what to do; status 1 when something must be done.

    Example: vmp doctor
    """
    from pipeline.doctor import examine

    sys.exit(examine())


@app.command()
def demo(
    overrides: Overrides = None,
    root: Annotated[Path, typer.Option(help="Where everything goes.")] = Path(),
    train_clips: Annotated[int, typer.Option(min=1, help="Videos to render and learn.")] = 6000,
    val_clips: Annotated[int, typer.Option(min=1, help="Videos to test on.")] = 800,
) -> None:
    """The whole road on this machine: videos, shards, a submitted training, evaluation, MLflow.

    Example: vmp demo
    """
    from pipeline.demo import run_demo

    sys.exit(run_demo(root, overrides or [], {"train": train_clips, "val": val_clips}))


@app.command()
def ui(
    runs: Annotated[Path, typer.Option(help="Directory of the runs.")] = Path("runs"),
    port: int = 5000,
) -> None:
    """Open the MLflow UI on the run store; serves on this machine only.

    Example: vmp ui --runs runs
    """
    from pipeline.tracking import serve_ui

    sys.exit(serve_ui(runs, port))


@bench_app.command("scan")
def bench_scan(
    size: Annotated[list[str] | None, typer.Option(help="ti, s or m; may be repeated.")] = None,
    frames: Annotated[list[int] | None, typer.Option(help="8, 16, 32 or 64.")] = None,
    dtype: str = "float32",
    device: str = "cpu",
) -> None:
    """The scan of every backend beside its peers: time, memory, bandwidth, exponentials.

    Example: vmp bench scan --size m --frames 8
    """
    from pipeline.bench.scan import run

    run(size or ("m",), frames or (8,), dtype=dtype, device=device)


@bench_app.command("loader")
def bench_loader_command(
    shards: Annotated[Path, typer.Argument(help="Shard directory of prepared clips.")],
    split: str = "train",
) -> None:
    """The loader beside pure decoding, plain webdataset and the FFCV cache.

    Example: vmp bench loader shards
    """
    from pipeline.bench.loader import bench_loader

    report = bench_loader(shards, split=split, progress=lambda line: typer.echo(line, err=True))
    typer.echo("\n".join(report.lines()))


@bench_app.command("shard")
def bench_shard_command(
    videos: Annotated[Path | None, typer.Option(help="One folder per class.")] = None,
) -> None:
    """Sharding beside plain encoding.

    Example: vmp bench shard
    """
    from pipeline.bench.shard import ShardBench, bench_shard

    bench_shard(ShardBench(videos=videos))


if __name__ == "__main__":
    main()
