"""`vmp demo`: synthetic videos, shards, a submitted training, evaluation, and next steps.

Each stage keeps what an earlier, killed call has finished and resumes from there.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.panel import Panel

from data_prep.options import ShardConfig
from data_prep.shard import shard
from data_prep.synthetic import CLASSES, SynthOptions, synthesize
from data_prep.video.clip import EncodeSettings
from pipeline import exits
from pipeline.commands.program import vmp
from pipeline.commands.submit import Order, submit_run
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError
from pipeline.inference.evaluate_checkpoint import evaluate_checkpoint
from pipeline.rundir.summary import read_summary

console = Console(highlight=False)
_CHANCE = 1 / len(CLASSES)


def suited_to(device: str, *, devices: int, cores: int) -> list[str]:
    """Return overrides that suit the recipe `demo`, made for two CPU cores, to a type of device.

    The global batch stays, and with it the learning curve. On a GPU, a step of so small a model
    mostly launches kernels and waits for clips. The overrides therefore use one large micro-batch,
    more loader processes, and kernels that are not deterministic.
    """
    if device != "cuda":
        return []
    ranks = min(devices, 2)
    return [
        f"launch.ranks_per_node={ranks}",
        "launch.threads_per_rank=null",
        "batch.max_micro=32",
        f"data.workers={max(1, min(8, cores // ranks - 1))}",
        "deterministic=false",
    ]


def run_demo(root: Path, overrides: Sequence[str], clips_per_split: Mapping[str, int]) -> int:
    """Run all stages under `root` and return the exit status of the training."""
    videos, shards = root / "demo" / "videos", root / "demo" / "shards"
    gpus = torch.cuda.device_count()
    suited = suited_to("cuda" if gpus else "cpu", devices=gpus or 1, cores=os.cpu_count() or 1)
    overrides = [f"data.train={shards}", f"runs_dir={root / 'runs'}", *suited, *overrides]
    started = time.monotonic()
    config = load_config("demo", overrides)
    _check(config, clips_per_split["train"])

    console.rule("1/4  rendering videos whose class is the motion")
    annotations = synthesize(videos, SynthOptions(clips_per_split=clips_per_split))

    console.rule("2/4  sharding them into WebDataset tars")
    # The rendered videos have the encoding of shards already, so their bytes are kept; a user's
    # own videos are re-encoded.
    shard(
        ShardConfig(
            format="csv",
            annotations=annotations,
            videos=videos,
            out=str(shards),
            encode=EncodeSettings(copy_suitable=True),
        )
    )

    console.rule("3/4  training VideoMambaPro through Submitit and DeepSpeed")
    status = submit_run("demo", overrides, Order())
    if status != exits.DONE:
        return status

    console.rule("4/4  evaluating the checkpoint, frames in order and shuffled")
    run_dir = config.run_dir
    summary = read_summary(run_dir)
    if summary is None:
        raise ConfigError(f"{run_dir}: its summary cannot be read; run the same command again")
    checkpoint = summary.checkpoint
    ordered = evaluate_checkpoint(checkpoint, shards)
    shuffled = evaluate_checkpoint(checkpoint, shards, ["eval.shuffle_frames=true"])
    order_matters = (
        "it reads motion, not looks"
        if ordered.top1 > 2 * max(shuffled.top1, _CHANCE)
        else "it has not learned to read motion; the full demo does"
    )
    console.print(
        Panel(
            f"top-1 on {ordered.num_samples} unseen videos   {ordered.top1:.1%}\n"
            f"the same with frames shuffled in time   {shuffled.top1:.1%}   "
            f"(chance {_CHANCE:.1%}): {order_matters}\n"
            f"whole demo   {time.monotonic() - started:.0f} s",
            title="VideoMambaPro demo",
            expand=False,
        )
    )
    recipe = "finetune" if torch.cuda.is_available() else "finetune_cpu"
    # These lines are printed without a panel, which would break lines that users copy.
    console.print(
        f"run          {run_dir}\n"
        f"checkpoint   {checkpoint}\n"
        f"MLflow       {vmp()} ui --runs {run_dir.parent}   # run {summary.mlflow_run_id}\n\n"
        "your own videos, in one folder per class under MY_VIDEOS:\n"
        f"{vmp()} data shard --format folder --videos MY_VIDEOS --out my_shards "
        "--val-fraction 0.2\n"
        f"{vmp()} train {recipe} name=mine data.train=my_shards",
        soft_wrap=True,
    )
    return exits.DONE


def _check(config: RunConfig, train_clips: int) -> None:
    """Raise ConfigError for what cannot work, before minutes are spent on rendering."""
    config.batch_split(config.launch.ranks_per_node or 1)
    if config.model.num_classes != len(CLASSES):
        raise ConfigError(
            f"model.num_classes={config.model.num_classes}: the demo's videos have {len(CLASSES)} "
            "classes; leave it out"
        )
    if config.batch.global_size > train_clips:
        raise ConfigError(
            f"batch.global_size={config.batch.global_size} is more than --train-clips "
            f"{train_clips}: lower one or raise the other"
        )
