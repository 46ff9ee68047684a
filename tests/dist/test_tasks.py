"""Runs of the tasks that have a teacher: resumed elsewhere, evaluated, exported, fine-tuned.

And a run on pictures, which begins one on videos.
"""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from PIL import Image

from data_prep.options import ShardConfig
from data_prep.shard import shard
from data_prep.synthetic_letters import letter_picture
from model import WeightsError, create_model, load_model, save_model
from model.containers import FOREIGN
from pipeline import rundir
from pipeline.checkpoint import layout
from pipeline.checkpoint.load import read_weights
from pipeline.config import load_config
from pipeline.errors import CheckpointError, ConfigError
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.inference.evaluate_checkpoint import evaluate_checkpoint
from pipeline.inference.export import export_weights
from pipeline.prepare import prepare_run
from pipeline.rundir.metrics import read_metrics
from pipeline.rundir.summary import read_summary, write_summary
from pipeline.training import distributed
from pipeline.training.assemble import assemble
from pipeline.training.distributed import World
from pipeline.training.train import summary_of
from tests import runs
from tests.ranks import run_on_ranks

pytestmark = [pytest.mark.dist, pytest.mark.slow]

STEPS = 4
KINDS = ("distillation", "masked")


class Job(NamedTuple):
    arguments: list[str]
    """Those of `vmp train`."""
    begun: Path | None = None
    """A finished run, of which half is copied to the place of this one; None = a new run."""


def carry_out(world: World, jobs: list[Job]) -> list[str]:
    """Train every job; the error of each, or "" for those that ended well."""
    return [_train(world, job) for job in jobs]


def _train(world: World, job: Job) -> str:
    recipe, *overrides = job.arguments
    config = load_config(recipe, overrides)
    distributed.on_main(lambda: _half(job.begun, config.run_dir))
    run_dir = distributed.on_main(lambda: prepare_run(config))
    with Stopper(config.stop) as stopper, ExitStack() as stack:
        try:
            trainer = assemble(config, run_dir, world, stopper, Pulse(world.rank), stack)
        except CheckpointError as error:
            return str(error)
        trainer.fit()
        if world.is_main:
            write_summary(run_dir, summary_of(trainer))
    return ""


def _half(begun: Path | None, run_dir: Path) -> None:
    if begun is not None:
        shutil.copytree(begun, run_dir)
        shutil.rmtree(run_dir / rundir.CHECKPOINTS / layout.checkpoint_name(STEPS))


class Runs(NamedTuple):
    root: Path
    shards: Path
    said: list[str]


def training(root: Path, shards: Path, kind: str, place: str, **fields: object) -> list[str]:
    own = {
        "schedule__max_steps": STEPS,
        "checkpoint__every_steps": 2,
        "checkpoint__keep_last": 3,
        "tracking__enabled": "false",
        "task__kind": kind,
        "task__teacher__path": root / "wide.safetensors",
    }
    return runs.overrides(root / place, shards, kind, **(own | fields))


def left_by(root: Path, kind: str) -> Path:
    """What a later run begins with: the run itself, or the file that was exported from it."""
    return root / "whole" / kind if kind == "distillation" else root / f"{kind}.safetensors"


def tuning(root: Path, shards: Path, source: Path) -> list[str]:
    """One step with no learning rate to speak of."""
    nothing = {"optim__lr": 1e-12, "schedule__warmup_lr": 0, "schedule__min_lr": 0}
    fields = nothing | {"schedule__max_steps": 1, "tracking__enabled": "false"}
    return runs.overrides(root, shards, f"from_{source.name}", init_from=source, **fields)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Shards of 48 pictures of four letters, in the folders and under the names of ImageNet."""
    images = tmp_path_factory.mktemp("imagenet")
    for number, (split, count) in enumerate({"train": 40, "val": 8}.items()):
        for index in range(count):
            folder = images / split / f"n0{index % 4}"
            folder.mkdir(parents=True, exist_ok=True)
            pixels = letter_picture(0, number, 10 * (index // 4) + index % 4, size=48)[0]
            Image.fromarray(pixels).save(folder / f"n0{index % 4}_{index}.JPEG", quality=95)
    out = images.parent / "pictures"
    config = ShardConfig(format="folder", videos=images, out=str(out), decoders=1)
    shard(config, show_progress=False)
    return out


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, glyph_shards: Path, pictures: Path) -> Runs:
    """Both tasks: in one go and resumed on two ranks at stage 3, resumed on one, fine-tuned."""
    root = tmp_path_factory.mktemp("tasks")
    torch.manual_seed(1)
    for name in ("wide", "other"):
        net = create_model("videomambapro-tiny-test", embed_dim=48)
        save_model(root / f"{name}.safetensors", net)
    shutil.copy(root / "wide.safetensors", root / "moved.safetensors")
    moved = {"task__teacher__path": root / "moved.safetensors"}
    other = {"task__teacher__path": root / "other.safetensors"}
    sharded = {"engine__zero_stage": 3}
    two, one = [], []
    for kind in KINDS:
        run = (root, glyph_shards, kind)
        whole = root / "whole" / kind
        two += [
            Job(training(*run, "whole", **sharded)),
            Job(training(*run, "resumed", **sharded, **moved), whole),
        ]
        one += [
            Job(training(*run, "alone"), whole),
            Job(training(*run, "misled", **other), whole),
            Job(tuning(root, glyph_shards, left_by(root, kind))),
        ]
    image = {"model__num_frames": 1, "model__num_classes": 4, "data__sampling": "tsn"}
    image |= {"schedule__max_steps": 4, "tracking__enabled": "false"}
    one += [
        Job(runs.overrides(root, pictures, "image", **image)),
        Job(tuning(root, glyph_shards, root / "image")),
    ]
    run_on_ranks(carry_out, 2, two)
    for kind in KINDS:
        export_weights(root / "whole" / kind, root / f"{kind}.safetensors")
    (said,) = run_on_ranks(carry_out, 1, one)
    return Runs(root, glyph_shards, said)


@pytest.mark.parametrize("kind", KINDS)
def test_a_resumed_run_ends_with_the_same_bits_and_elsewhere_within_rounding(
    done: Runs, kind: str
) -> None:
    expected = runs.final_state(done.root / "whole" / kind)
    runs.assert_bitwise_equal(expected, runs.final_state(done.root / "resumed" / kind))
    alone = runs.final_state(done.root / "alone" / kind)
    assert runs.largest_relative_difference(expected, alone) < 1e-5


def test_only_a_run_with_another_teacher_does_not_go_on(done: Runs) -> None:
    said = [error for error in done.said if error]
    assert len(said) == len(KINDS)
    assert all("was trained with another teacher (digest" in error for error in said)


@pytest.mark.parametrize("kind", KINDS)
def test_metrics_and_summary_are_those_of_the_task(done: Runs, kind: str) -> None:
    run_dir = done.root / "whole" / kind
    summary = read_summary(run_dir)
    assert summary is not None
    rows = {row["kind"]: row for row in read_metrics(run_dir)}
    state = layout.read_state(run_dir / "checkpoints" / layout.checkpoint_name(STEPS))
    if kind == "masked":
        assert rows["eval"].keys() >= {"similarity", "loss", "num_samples"}
        assert "top1" not in rows["train"].keys() | rows["eval"].keys()
        assert "top1" not in (run_dir / "summary.json").read_text()
        assert "similarity" in summary.line(run_dir)
        assert -1 < summary.similarity < 1
        assert state.best_top1 == summary.similarity
    else:
        assert 0 < rows["train"]["alignment"] < 4
        assert summary.top1 == rows["eval"]["top1"] == state.best_top1
    assert len(state.teacher_digest) == 64


@pytest.mark.parametrize("kind", KINDS)
def test_what_leaves_the_run_has_no_head_of_the_task_and_begins_another(
    done: Runs, kind: str
) -> None:
    run_dir, exported = done.root / "whole" / kind, done.root / f"{kind}.safetensors"
    stored = read_weights(run_dir / "checkpoints" / layout.checkpoint_name(STEPS))
    assert any(map(FOREIGN.match, stored))
    tuned_run = done.root / f"from_{left_by(done.root, kind).name}" / "checkpoints"
    for name, tensor in read_weights(tuned_run / layout.checkpoint_name(1)).items():
        if not name.startswith("head."):
            torch.testing.assert_close(tensor, stored[name], atol=1e-9, rtol=0)
    if kind == "masked":
        with pytest.raises(ConfigError, match="masked pre-training has no classification head"):
            evaluate_checkpoint(run_dir, done.shards)
        with pytest.raises(WeightsError, match=r"no classification head: .*init_from="):
            evaluate_checkpoint(exported, done.shards)
    else:
        summary = read_summary(run_dir)
        assert summary is not None
        assert evaluate_checkpoint(run_dir, done.shards).top1 == summary.top1
        assert evaluate_checkpoint(exported, done.shards).top1 == summary.top1
        assert load_model(exported).state_dict().keys() < stored.keys()


def test_weights_of_pictures_begin_a_run_on_videos(done: Runs, pictures: Path) -> None:
    summary = read_summary(done.root / "image")
    assert summary is not None
    assert summary.num_samples == 8
    assert evaluate_checkpoint(done.root / "image", pictures).top1 == summary.top1
    image = read_weights(done.root / "image" / "checkpoints" / layout.checkpoint_name(4))
    video = read_weights(done.root / "from_image" / "checkpoints" / layout.checkpoint_name(1))
    assert image["temporal_pos_embedding"].shape[1] == 1
    assert image["temporal_pos_embedding"].any()
    for name, tensor in video.items():
        if not name.startswith("head."):  # the embedding of the only frame is that of each
            expected = image[name].expand_as(tensor)
            torch.testing.assert_close(tensor, expected, atol=1e-9, rtol=0)
