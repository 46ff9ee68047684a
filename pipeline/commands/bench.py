"""`vmp bench`: benchmarks that measure each candidate next to a peer in the same run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from pipeline.terminal import say, table_console

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
    from pipeline.bench.scan import WIDTHS, run
    from pipeline.errors import ConfigError

    sizes = size or ["m"]
    unknown = [name for name in sizes if name not in WIDTHS]
    if unknown:
        raise ConfigError(f"--size {unknown[0]}: unknown; one of {', '.join(WIDTHS)}")
    _need_device(device)
    run(sizes, frames or (8,), batch=batch, dtype=dtype, device=device)


@app.command("loader")
def bench_loader_command(
    shards: Annotated[
        Path | None, typer.Argument(help="Shard directory; without one, clips are rendered.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split to read.")] = "train",
    clips: Annotated[int, typer.Option(min=8, help="Clips to render without SHARDS.")] = 48,
    rounds: Annotated[int, typer.Option(min=1, help="Of all contenders in turn.")] = 3,
    seconds: Annotated[
        float, typer.Option(min=0.001, help="For each contender, in every round.")
    ] = 6.0,
) -> None:
    """Measure the loader next to pure decoding, plain webdataset and the FFCV cache.

    Example: vmp bench loader shards
    """
    import tempfile

    from pipeline.bench.loader import LoaderBench, bench_loader
    from pipeline.bench.scenes import FRAMES, HEIGHT, WIDTH, shard_scenes

    bench = LoaderBench(rounds=rounds, seconds=seconds)
    with tempfile.TemporaryDirectory(prefix="vmp-bench-") as scratch:
        if shards is None:
            _tell(f"rendering and sharding {clips} videos of {WIDTH}x{HEIGHT}, {FRAMES} frames")
            shards, split = shard_scenes(Path(scratch), clips), "train"
        report = bench_loader(shards, bench, split=split, progress=_tell)
    say("\n".join(report.lines()))


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
        table_console().print(report.tables())


@app.command("gpu")
def bench_gpu_command(
    parts: Annotated[
        str, typer.Option(help="Some of right, clean, fast and step, by comma.")
    ] = "right,clean,fast,step",
    out: Annotated[
        Path, typer.Option(help="Folder for CARD.json, which holds the results of all parts.")
    ] = Path("benchmarks/results"),
) -> None:
    """The CUDA kernels on this GPU: errors against float64, races, speed beside peers and limits.

    The exit status is 1 when something is wrong or unclean.

    Example: vmp bench gpu --parts right,clean
    """
    from pipeline.bench.gpu import bench_gpu
    from pipeline.exits import FAILED

    asked = [part.strip() for part in parts.split(",") if part.strip()]
    if not bench_gpu(asked, out, say):
        raise typer.Exit(FAILED)


@app.command("rows")
def bench_rows_command(
    size: Annotated[Literal["ti", "s", "m"], typer.Option(help="Of the model.")] = "m",
    frames: Annotated[int, typer.Option(min=1, help="8, 16, 32 or 64.")] = 8,
    batch: Annotated[int, typer.Option(min=1, help="Samples.")] = 16,
    dtype: Annotated[
        Literal["float32", "bfloat16", "float16"], typer.Option(help="Of the activations.")
    ] = "bfloat16",
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to measure.")] = "cuda",
    repeats: Annotated[int, typer.Option(min=1, help="Timed runs of each kernel.")] = 20,
) -> None:
    """Convolution + SiLU and residual + RMSNorm beside a plain copy of as many bytes.

    Example: vmp bench rows --device cpu --dtype float32 --batch 1
    """
    from pipeline.bench.rows import run

    _need_device(device)
    run(size, frames, batch, dtype=dtype, device=device, repeats=repeats)


@app.command("host")
def bench_host_command(
    device: Annotated[
        Literal["cpu", "cuda"],
        typer.Option(help="On a CPU, launches are left out; on a GPU, they are counted."),
    ] = "cpu",
    rounds: Annotated[int, typer.Option(min=1, help="Timed rounds of each operator.")] = 20,
    calls: Annotated[int, typer.Option(min=1, help="Calls in a round.")] = 100,
) -> None:
    """What a call of the CUDA operators costs on the host, in microseconds. It needs no GPU.

    Example: vmp bench host
    """
    from pipeline.bench.host import bench_host

    _need_device(device)
    table_console().print(bench_host(device, rounds, calls))


@app.command("stream")
def bench_stream_command(
    preset: Annotated[str, typer.Option(help="Of the model.")] = "videomambapro-nano",
    frames: Annotated[int, typer.Option(min=10, help="Frames to push, one by one.")] = 10_000,
    device: Annotated[Literal["cpu", "cuda"], typer.Option(help="Where to measure.")] = "cpu",
) -> None:
    """Speed and memory of `Stream` along many frames; both should stay the same.

    Example: vmp bench stream --frames 1000
    """
    from pipeline.bench.stream import bench_stream

    _need_device(device)
    table_console().print(bench_stream(preset, frames, device))


@app.command("machine-code")
def bench_machine_code_command(
    architecture: Annotated[str, typer.Option(help="Of the GPU to compile for.")] = "sm_90",
    states: Annotated[int, typer.Option(min=1, help="States per channel.")] = 16,
    warps: Annotated[int, typer.Option(min=1, help="Per block of the backward kernel.")] = 3,
) -> None:
    """Instructions in the loops of the compiled CUDA scan, by kind.

    It needs `cuobjdump`, of a CUDA toolkit or Triton, and no GPU.

    Example: vmp bench machine-code --architecture sm_80
    """
    from pipeline.bench.machine_code import count_instructions

    for line in count_instructions(architecture, states, warps):
        say(line)


@app.command("order")
def bench_order_command(
    samples: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Of an epoch; may be repeated. 240 thousand to 100 million."),
    ] = None,
    index_samples: Annotated[
        list[int] | None,
        typer.Option(min=1, help="Rows of an index; may be repeated. 240 thousand, 4 million."),
    ] = None,
) -> None:
    """The order of an epoch beside `torch.randperm`, and the index: seconds and memory.

    Example: vmp bench order --samples 240000 --index-samples 240000
    """
    from pipeline.bench.order import bench_order

    for table in bench_order(
        samples or (240_000, 10**7, 10**8), index_samples or (240_000, 4 * 10**6)
    ):
        table_console().print(table)


@app.command("plan")
def bench_plan_command(
    videos: Annotated[
        list[int] | None,
        typer.Option(min=1, help="To plan for; may be repeated. 1 thousand to 1 million."),
    ] = None,
) -> None:
    """What sharding costs besides encoding: planning, a job's start, sealing.

    Example: vmp bench plan --videos 10000
    """
    from pipeline.bench.plan import bench_plan

    table_console().print(bench_plan(videos or (1_000, 10_000, 100_000, 1_000_000)))


def _tell(line: str) -> None:
    say(line, err=True)


def _need_device(device: str) -> None:
    """Raises ConfigError where there is none."""
    import torch

    from pipeline.errors import ConfigError

    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: there is no CUDA device here; `vmp doctor` says more")
