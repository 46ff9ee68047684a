"""`vmp bench`: benchmarks that measure each candidate next to a peer in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.terminal import say

app = typer.Typer(no_args_is_help=True, help="Measure speed next to peers.")


@app.command("scan")
def bench_scan(
    size: Annotated[list[str] | None, typer.Option(help="ti, s or m; may be repeated.")] = None,
    frames: Annotated[list[int] | None, typer.Option(min=1, help="8, 16, 32 or 64.")] = None,
    batch: Annotated[int, typer.Option(min=1, help="Samples per batch.")] = 1,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"],
        typer.Option(help="Number format of the tensors."),
    ] = "float32",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to measure.")] = "cpu",
) -> None:
    """Measure the scan of every backend and of its peers: time, memory, bandwidth, exponentials.

    Example: vmp bench scan --size m --frames 8
    """
    import torch

    from pipeline.bench.scan import WIDTHS, run
    from pipeline.errors import ConfigError

    sizes = size or ["m"]
    unknown = [name for name in sizes if name not in WIDTHS]
    if unknown:
        raise ConfigError(f"--size {unknown[0]}: unknown; one of {', '.join(WIDTHS)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here; see `vmp doctor`")
    run(sizes, frames or (8,), batch=batch, dtype=dtype, device=device)


@app.command("loader")
def bench_loader_command(
    shards: Annotated[
        Path | None, typer.Argument(help="Shard directory; without one, clips are rendered.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    clips: Annotated[int, typer.Option(min=8, help="Clips to render without SHARDS.")] = 48,
) -> None:
    """Measure the loader next to pure decoding, plain webdataset and the FFCV cache.

    Example: vmp bench loader shards
    """
    import tempfile

    from pipeline.bench.letters import shard_letters
    from pipeline.bench.loader import bench_loader

    with tempfile.TemporaryDirectory(prefix="vmp-bench-") as scratch:
        if shards is None:
            _tell(f"rendering and sharding {clips} videos of 96 frames")
            shards, split = shard_letters(Path(scratch), clips), "train"
        report = bench_loader(shards, split=split, progress=_tell)
    say("\n".join(report.lines()))


def _tell(line: str) -> None:
    say(line, err=True)


@app.command("shard")
def bench_shard_command(
    videos: Annotated[Path | None, typer.Option(help="One folder per class.")] = None,
) -> None:
    """Measure sharding next to plain encoding.

    Example: vmp bench shard
    """
    from pipeline.bench.shard import ShardBench, bench_shard

    bench_shard(ShardBench(videos=videos), _tell)


@app.command("step")
def bench_step_command(
    recipe: Annotated[str, typer.Argument(help="A .yaml file, or a shipped recipe.")] = "demo",
    overrides: Annotated[
        list[str] | None, typer.Argument(help="Any field of the recipe: batch.max_micro=4 ...")
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Timed steps of each contender.")] = 5,
    accumulation: Annotated[int, typer.Option(min=1, help="Most micro-batches per step.")] = 2,
    contenders: Annotated[
        str,
        typer.Option(help="Keys separated by commas: chunked,zero0,plain-torch,mamba-block ..."),
    ] = "",
    seconds: Annotated[
        float, typer.Option(min=0.001, help="Begin no round after this many seconds.")
    ] = 600,
) -> None:
    """Measure a step next to other scans, another ZeRO stage, plain torch and mamba-ssm's block.

    No data are needed. A contender that cannot run here is left out, and the reason is shown.

    Example: vmp bench step k400_m16_f16 model.num_frames=8 batch.max_micro=1 --seconds 120
    """
    from rich.console import Console

    from pipeline.bench.step import StepBench, bench_step
    from pipeline.config import load_config
    from pipeline.training.ranks import rank_by_environment

    given = [recipe, *(overrides or [])]
    if "=" in recipe:
        given = ["demo", *given]
    config = load_config(given[0], given[1:])
    is_main = rank_by_environment() == 0
    bench = StepBench(
        rounds=rounds,
        accumulation=accumulation,
        contenders=tuple(key.strip() for key in contenders.split(",") if key.strip()),
        seconds=seconds,
    )

    def tell(line: str) -> None:
        if is_main:
            _tell(line)

    report = bench_step(config, bench, tell)
    if is_main:
        Console().print(report.tables())
