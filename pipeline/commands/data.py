"""`vmp data`: make and inspect shard directories."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.terminal import one_line, say

if TYPE_CHECKING:
    from collections import Counter

    from data_prep.options import ShardConfig
    from data_prep.schema import Manifest


app = typer.Typer(no_args_is_help=True, help="Make and inspect shard directories.")


@app.command("synth")
def data_synth(
    out: Annotated[Path, typer.Option(help="Directory for the videos and annotations.csv.")],
    train: Annotated[int, typer.Option(min=0, help="Clips of the training split.")] = 6000,
    val: Annotated[int, typer.Option(min=0, help="Clips of the validation split.")] = 800,
    seed: Annotated[int, typer.Option(min=0, help="Seed of all random draws.")] = 0,
    kind: Annotated[
        Literal["motion", "events"],
        typer.Option(help="What the class is: a letter's motion, or the order of two events."),
    ] = "motion",
) -> None:
    """Render videos whose class is the motion of a letter, or the order of two short events.

    Example: vmp data synth --out glyphs
    """
    from data_prep.synthetic import SynthOptions, synthesize
    from data_prep.synthetic_events import EventOptions

    options_of = EventOptions if kind == "events" else SynthOptions
    say(synthesize(out, options_of(clips_per_split={"train": train, "val": val}, seed=seed)))


@app.command("shard")
def data_shard(
    format: Annotated[str, typer.Option(help="csv, folder, kinetics, ssv2, ucf101 or hmdb51.")],
    videos: Annotated[Path, typer.Option(help="Directory of the videos.")],
    out: Annotated[str, typer.Option(help="Shard directory to make or complete.")],
    annotations: Annotated[Path | None, typer.Option(help="Annotation file or directory.")] = None,
    split: Annotated[str, typer.Option(help="Split of clips whose annotation has none.")] = "train",
    val_fraction: Annotated[
        float, typer.Option(min=0, max=0.99, help="Share of the train videos to hold out as val.")
    ] = 0.0,
    jobs: Annotated[int, typer.Option(min=1, help="Jobs that claim shards.")] = 1,
    max_missing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of clips that may be absent or unusable.")
    ] = 0.1,
    fold: Annotated[
        int, typer.Option(min=1, max=3, help="Official division of ucf101 and hmdb51.")
    ] = 1,
    clips_per_shard: Annotated[int, typer.Option(min=1, help="Clips in one tar file.")] = 256,
    crf: Annotated[
        int, typer.Option(min=0, max=51, help="Quality of x264; lower is better and larger.")
    ] = 23,
    copy: Annotated[bool, typer.Option("--copy", help="Keep suitable files as they are.")] = False,
    work: Annotated[Path | None, typer.Option(help="Shared directory, when OUT is a URL.")] = None,
    cluster: Annotated[
        Literal["local", "slurm"], typer.Option(help="slurm: one array of --jobs jobs.")
    ] = "local",
    profile: Annotated[Path | None, typer.Option(help="Cluster profile, YAML.")] = None,
) -> None:
    """Probe, re-encode and pack videos into sealed WebDataset shards. Safe to kill and repeat.

    Example: vmp data shard --format folder --videos my_videos --out shards
    """
    from data_prep.options import ShardConfig
    from data_prep.sealed.survey import reasons
    from data_prep.shard import shard
    from data_prep.video.clip import EncodeSettings

    config = ShardConfig(
        format=format,
        videos=videos,
        annotations=annotations,
        out=out,
        split=split,
        val_fraction=val_fraction,
        jobs=jobs,
        max_missing=max_missing,
        fold=fold,
        clips_per_shard=clips_per_shard,
        encode=EncodeSettings(crf=crf, copy_suitable=copy),
        work=work,
    )
    manifest = shard(config) if cluster == "local" else _shard_on_slurm(config, profile)
    _say_result(out, manifest, reasons(out))


def _say_result(out: str, manifest: Manifest, left_out: Counter[str]) -> None:
    counts = ", ".join(f"{name} {count}" for name, count in manifest.splits.items())
    say(f"{out}: {len(manifest.classes)} classes; samples: {counts}")
    if left_out:
        listed = ", ".join(f"{count} {code}" for code, count in left_out.most_common())
        say(f"left out: {listed}; each with its reason in quarantine.jsonl")


def _shard_on_slurm(config: ShardConfig, profile: Path | None) -> Manifest:
    """Plan and seal the shards in this process, and make them in a SLURM array."""
    from data_prep.errors import DataError
    from data_prep.jobs.progress import progress_bar
    from data_prep.shard import finish, prepare, sealed
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
        outcome = run_array(tasks, work / "logs", cluster_profile, name="vmp-shard", announce=say)
    try:
        return finish(work)
    except DataError as error:
        if outcome.all_completed:
            raise
        say(f"error: {one_line(f'{error} ({outcome})')}", err=True)
        sys.exit(exits.FAILED)


@app.command("adopt")
def data_adopt(
    tars: Annotated[Path, typer.Argument(help="Directory of WebDataset tars, or one tar.")],
    out: Annotated[
        Path | None, typer.Option(help="Directory of the index; default: beside the tars.")
    ] = None,
    split: Annotated[str, typer.Option(help="The split that these tars are.")] = "train",
    dataset: Annotated[
        str, typer.Option(help="Name of the data set; default: that of the shard directory.")
    ] = "",
    label_key: Annotated[
        str | None,
        typer.Option(help="Field of the json with the label; default: the cls or txt member."),
    ] = None,
    unlabelled: Annotated[
        bool, typer.Option("--unlabelled", help="Read no labels; for --split test only.")
    ] = False,
    classes: Annotated[
        Path | None, typer.Option(help="File with a class name per line, in order of numbers.")
    ] = None,
    max_missing: Annotated[
        float, typer.Option(min=0, max=1, help="Share of samples that may be unusable.")
    ] = 0.1,
    decoders: Annotated[
        int | None, typer.Option(min=1, help="Decoding processes; default: one per core.")
    ] = None,
) -> None:
    """Index and seal tars of other tools (video2dataset, webdataset) where they lie.

    Example: vmp data adopt k400/train --out k400/shards --label-key label --classes classes.txt
    """
    from data_prep.adopted.adopt import AdoptConfig, adopt
    from data_prep.adopted.labels import read_classes
    from data_prep.sealed.survey import reasons

    config = AdoptConfig(
        source=tars,
        out=out,
        split=split,
        dataset=dataset,
        label_key=label_key,
        unlabelled=unlabelled,
        classes=None if classes is None else read_classes(classes),
        max_missing=max_missing,
        decoders=decoders,
    )
    manifest = adopt(config)
    where = str(config.root)
    _say_result(where, manifest, reasons(where))


@app.command("verify")
def data_verify(
    shards: Annotated[str, typer.Argument(help="Shard directory.")],
    fix: Annotated[bool, typer.Option("--fix", help="Rebuild what is damaged.")] = False,
) -> None:
    """Re-read and check everything that the manifest names. The exit status is 1 if it is unsound.

    Example: vmp data verify shards
    """
    from data_prep.sealed.verify import verify
    from data_prep.video.picture import PICTURE_VERSION

    found = verify(shards, fix=fix)
    for name in found.rebuilt:
        say(f"rebuilt {name}")
    for finding in found.findings:
        say(one_line(str(finding)))
    if found.picture_version < PICTURE_VERSION:
        say(f"made by an earlier version (pictures {found.picture_version})")
        for older in found.affected:
            say(f"  {older}")
        advice = "what to do" if found.affected else "none of its samples is affected"
        say(f'  {advice}: docs/data.md, "Shards of earlier versions"')
    state = "unsound" if found.findings else "sound"
    say(f"{shards}: {state}; {found.shards} shards, {found.samples} samples")
    sys.exit(1 if found.findings else 0)


@app.command("report")
def data_report(shards: Annotated[str, typer.Argument(help="Shard directory.")]) -> None:
    """Write a self-contained HTML page about a shard directory.

    Example: vmp data report shards
    """
    from data_prep.sealed.report import report

    say(report(shards))


@app.command("cache")
def data_cache(
    shards: Annotated[Path, typer.Argument(help="Shard directory.")],
    out: Annotated[Path, typer.Option(help="Directory for the .beton files.")],
    split: Annotated[str, typer.Option(help="The split to decode.")] = "train",
    frames: Annotated[int, typer.Option(min=1, help="Frames kept of each clip.")] = 16,
    size: Annotated[int, typer.Option(min=1, help="Height and width of a frame, pixels.")] = 224,
    quality: Annotated[
        int, typer.Option(min=0, max=100, help="JPEG quality of the frames; 0 keeps raw pixels.")
    ] = 85,
) -> None:
    """Decode a split into an FFCV file for `data.reader=ffcv`.

    Example: vmp data cache shards --out cache
    """
    from pipeline.data.ffcv.cache import CacheOptions, build_cache

    manifest = build_cache(
        shards, split, out, CacheOptions(frames=frames, size=size, quality=quality)
    )
    say(f"{out / split}.beton: {manifest.model_dump_json(exclude={'source'})}")
