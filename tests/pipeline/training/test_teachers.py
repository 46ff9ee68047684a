"""Frozen teachers of every kind, and the tasks that listen to them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from model import VideoMamba, create_model, load_model, save_model
from model.distilled import DistilledVideoMamba
from model.masked import MaskedVideoMamba
from pipeline.bench.step import synthetic_batch
from pipeline.config import RunConfig, load_config
from pipeline.data.batch import Batch, normalize
from pipeline.data.errors import DataError
from pipeline.errors import CheckpointError, ConfigError
from pipeline.inference.exported import Card, write_exported
from pipeline.prepare import check_start
from pipeline.training.distributed import World
from pipeline.training.tasks.build import build_task
from pipeline.training.tasks.distillation import DistillationTask, misalignment
from pipeline.training.tasks.masked import MaskedTask
from pipeline.training.tasks.teacher import Features, open_teacher

CPU = torch.device("cpu")
WORLD = World(rank=0, local_rank=0, size=1, device=CPU)
# The student sees four steps of 2 x 2 patches, each of 8 x 8 pixels.
TINY = ["model.preset=videomambapro-tiny-test", "model.num_classes=8"]


def config_of(teacher: Path, kind: str = "masked", *overrides: str) -> RunConfig:
    own = [f"task.kind={kind}", f"task.teacher.path={teacher}"]
    return load_config("demo", [*TINY, *own, *overrides])


@pytest.fixture(scope="module")
def wide(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An exported teacher, wider than the student and normalised in another way."""
    torch.manual_seed(5)
    net = create_model("videomambapro-tiny-test", embed_dim=48, num_classes=8)
    run = load_config("demo", [*TINY, "data.mean=[0.5,0.4,0.3]", "data.std=[0.2,0.25,0.3]"])
    path = tmp_path_factory.mktemp("teachers") / "wide.safetensors"
    write_exported(path, net, Card.of(run, tuple("abcdefgh")))
    return path


def batch_of(config: RunConfig, size: int = 2) -> tuple[Tensor, Batch]:
    batch = synthetic_batch(config, size, WORLD)
    return normalize(batch.clips, config.data.mean, config.data.std), batch


def features(config: RunConfig) -> Features:
    return open_teacher(config, CPU)(*batch_of(config))


def test_a_model_sees_clips_in_its_own_normalisation(wide: Path) -> None:
    config = config_of(wide)
    seen = features(config)
    clips, batch = batch_of(config)
    expected = load_model(wide).tokens(normalize(batch.clips, (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)))
    assert seen.has_class_token
    assert seen.attention is None
    assert not seen.tokens.requires_grad
    torch.testing.assert_close(seen.tokens, expected, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(seen.tokens, load_model(wide).tokens(clips), atol=1e-2)


def test_opening_a_teacher_draws_nothing(wide: Path) -> None:
    torch.manual_seed(3)
    open_teacher(config_of(wide), CPU)
    after = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(after, torch.rand(1))


def test_an_image_model_looks_at_every_frame_by_itself(tmp_path: Path) -> None:
    net = create_model("videomambapro-tiny-test", num_frames=1)
    save_model(tmp_path / "image.safetensors", net)
    config = config_of(tmp_path / "image.safetensors")
    seen = features(config)
    clips, _ = batch_of(config)
    assert not seen.has_class_token
    third = net.eval().tokens(clips[:, :, 2:3])[:, 1:]
    torch.testing.assert_close(seen.tokens.view(2, 4, 4, -1)[:, 2], third)


def test_frames_are_resized_for_a_teacher_of_other_patches(tmp_path: Path) -> None:
    save_model(
        tmp_path / "big.pth", create_model("videomambapro-tiny-test", img_size=32, patch_size=16)
    )
    assert features(config_of(tmp_path / "big.pth")).tokens.shape == (2, 17, 32)


class Script(nn.Module):
    def __init__(self, attend: bool, patches: int = 4) -> None:
        super().__init__()
        self.attend, self.patches = attend, patches
        self.project = nn.Linear(3, 6)

    def forward(self, clips: Tensor):  # type: ignore[no-untyped-def]  # torch.jit.trace reads it
        colour = clips.mean((3, 4)).transpose(1, 2)
        tokens = self.project(colour)[:, :, None].expand(-1, -1, self.patches, -1)
        if self.attend:
            return tokens, torch.ones_like(tokens[..., 0])
        return tokens


class OfSixFrames(nn.Module):
    def forward(self, clips: Tensor) -> Tensor:
        return clips.reshape(-1, 3, 6, 16, 16)


def script(path: Path, net: nn.Module) -> Path:
    torch.manual_seed(1)
    frames = 6 if isinstance(net, OfSixFrames) else 4
    torch.jit.trace(net, torch.zeros(1, 3, frames, 16, 16)).save(str(path))  # type: ignore[no-untyped-call]
    return path


@pytest.mark.parametrize("attend", [False, True])
def test_a_torchscript_file_gives_features_alone_or_with_attention(
    tmp_path: Path, attend: bool
) -> None:
    path = script(tmp_path / "clip.pt", Script(attend))
    config = config_of(path, "masked", "task.teacher.width=6", "task.teacher.img_size=16")
    seen = features(config)
    assert seen.tokens.shape == (2, 16, 6)
    assert (seen.attention is not None) == attend
    task = build_task(config, CPU)
    assert isinstance(task, MaskedTask)
    visible = task.visible(batch_of(config)[1], seen)
    assert visible.shape == (2, 4)  # of 4 patches, 3 are masked
    frames = (visible - torch.arange(4) * 4).tolist()
    assert all(len(set(row)) == 1 for row in frames) != attend  # tubelets, or each by itself


def stored(path: Path, keys: list[str], shape: tuple[int, ...] = (4, 4, 5)) -> Path:
    save_file({key: torch.full(shape, float(n)) for n, key in enumerate(keys)}, path)
    return path


def test_stored_features_are_found_by_key(tmp_path: Path) -> None:
    path = stored(tmp_path / "f.safetensors", ["synthetic-0", "synthetic-1"])
    config = config_of(path, "masked", "data.views=2")
    clips, batch = batch_of(config)
    seen = open_teacher(config, CPU)(clips, batch._replace(keys=["synthetic-1", ""]))
    assert seen.tokens.shape == (4, 16, 5)
    assert seen.tokens[:, 0, 0].tolist() == [1.0, 1.0, 0.0, 0.0]  # padding has no key
    with pytest.raises(DataError, match="has no features of sample other: it must hold one"):
        open_teacher(config, CPU)(clips, batch._replace(keys=["synthetic-1", "other"]))


@pytest.mark.parametrize(
    ("kind", "overrides", "said"),
    [
        ("no_script", ["task.teacher.width=6"], "not a TorchScript file"),
        ("script", [], "task.teacher.width: give the width of the features of"),
        ("script", ["task.teacher.width=7"], "returns shapes ((1, 4, 4, 6), None), expected"),
        ("patches", ["task.teacher.width=6"], "returns shapes ((1, 4, 9, 6), None), expected"),
        ("fails", ["task.teacher.width=6"], "fails on a clip (1, 3, 4, 16, 16)"),
        ("script", ["task.teacher.width=6", "task.mask=attention"], "gives no attention"),
        ("wide", ["task.mask=attention"], "gives no attention: set task.mask=tubelet"),
        ("wide", ["task.teacher.width=6"], "has width 48: leave it out"),
        ("wide", ["model.img_size=32"], "sees 4 steps of 4 patches, the model 4 of 16: choose"),
        ("wide", ["model.num_frames=8"], "sees 4 steps of 4 patches, the model 8 of 4: choose"),
        ("stored", ["data.hflip=0.5"], "which belong to other pixels once a clip is cropped"),
        ("stored", ["task.teacher.width=6"], "holds width 5"),
        ("stored", ["model.num_frames=8"], "have shape (4, 4, 5), expected (8, 4, 5)"),
    ],
)
def test_a_teacher_that_does_not_fit_is_one_line(
    tmp_path: Path, wide: Path, kind: str, overrides: list[str], said: str
) -> None:
    make = {
        "no_script": lambda: tmp_path / "x.pt",
        "script": lambda: script(tmp_path / "x.pt", Script(attend=False)),
        "patches": lambda: script(tmp_path / "x.pt", Script(attend=False, patches=9)),
        "fails": lambda: script(tmp_path / "x.pt", OfSixFrames()),
        "wide": lambda: wide,
        "stored": lambda: stored(tmp_path / "x.safetensors", ["a"]),
    }
    (tmp_path / "x.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(ConfigError) as caught:
        build_task(config_of(make[kind](), "masked", *overrides), CPU)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_loss_of_distillation_by_hand(wide: Path) -> None:
    config = config_of(wide, "distillation", "task.weight=0.5", "loss.label_smoothing=0.0")
    task = build_task(config, CPU)
    assert isinstance(task, DistillationTask)
    torch.manual_seed(0)
    plain = create_model(config.model)
    student = task.student(plain)
    assert isinstance(student, DistilledVideoMamba)
    clips, batch = batch_of(config)
    batch = batch._replace(weight=torch.tensor([1.0, 0.0]))
    loss, report = task(student, batch)

    _, tokens = student(clips, features=True)
    seen = task.teacher(clips, batch).tokens
    tokens, seen = F.normalize(tokens, dim=-1), F.normalize(seen, dim=-1)
    alignment = (2 - 2 * (tokens * seen).sum(-1)).mean(1)[0]
    entropy = F.cross_entropy(plain(clips), batch.label, reduction="none")[0]
    assert float(report.weight) == 1
    assert float(report.sums["alignment"].detach()) == pytest.approx(alignment.item(), rel=1e-4)
    assert loss.item() == pytest.approx((entropy + 0.5 * alignment).item() / 2, rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())


def test_the_loss_of_masked_pre_training_by_hand(wide: Path) -> None:
    config = config_of(wide, "masked", "task.mask_ratio=0.5", "data.views=2")
    task = build_task(config, CPU)
    assert isinstance(task, MaskedTask)
    torch.manual_seed(0)
    student = task.student(create_model(config.model))
    assert isinstance(student, MaskedVideoMamba)
    clips, batch = batch_of(config)
    loss, report = task(student, batch)

    seen = task.teacher(clips, batch)
    visible = task.visible(batch, seen)
    assert visible.shape == (4, 8)
    assert not torch.equal(visible[0], visible[1])  # two views of one sample
    predicted = F.normalize(student(clips, visible=visible), dim=-1)
    sums = []
    for row in range(4):
        places = [0, *(int(number) + 1 for number in visible[row])]
        target = F.normalize(seen.tokens[row, places], dim=-1)
        sums.append(float((2 - 2 * (predicted[row] * target).sum(-1)).mean()))
    assert loss.item() == pytest.approx(sum(sums) / 4, rel=1e-4)
    assert float(report.sums["loss"]) == pytest.approx(sum(sums), rel=1e-4)
    loss.backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None and p.grad.any() for p in student.parameters())

    metrics = task.evaluate(student.eval(), [batch])
    assert metrics["num_samples"] == 2
    assert metrics["loss"] == pytest.approx(sum(sums) / 4, rel=1e-4)
    assert metrics["similarity"] == pytest.approx(1 - metrics["loss"] / 2)


def test_masks_depend_on_epoch_key_and_view_not_on_the_place_in_the_batch(wide: Path) -> None:
    config = config_of(wide, "masked", "task.mask_ratio=0.5")
    task = build_task(config, CPU)
    assert isinstance(task, MaskedTask)
    _, batch = batch_of(config, 8)
    seen = Features(torch.zeros(8, 17, 1), has_class_token=True)
    masks = task.visible(batch, seen)
    moved = task.visible(batch._replace(keys=batch.keys[::-1]), seen)
    later = task.visible(batch._replace(epoch=batch.epoch + 1), seen)
    assert torch.equal(masks, moved.flip(0))
    assert not torch.equal(masks, later)


def test_a_perfect_student_has_no_misalignment() -> None:
    tokens = torch.randn(2, 3, 4)
    torch.testing.assert_close(misalignment(2 * tokens, tokens), torch.zeros(2))
    torch.testing.assert_close(misalignment(-tokens, tokens), torch.full((2,), 4.0))


def test_students_begin_with_the_weights_of_the_plain_model(wide: Path) -> None:
    for kind in ("distillation", "masked"):
        config = config_of(wide, kind)
        torch.manual_seed(0)
        plain = VideoMamba(config.model)
        student = build_task(config, CPU).student(plain).state_dict()
        shared = [key for key in plain.state_dict() if key in student]
        assert len(shared) == len(plain.state_dict()) - (2 if kind == "masked" else 0)
        assert all(torch.equal(student[key], plain.state_dict()[key]) for key in shared)


@pytest.mark.parametrize(
    ("name", "said"),
    [("gone.pt", "no such file"), ("gone.safetensors", "no such file"), ("runs/s", "no such file")],
)
def test_an_absent_teacher_is_refused_before_the_run_begins(
    tmp_path: Path, glyph_shards: Path, name: str, said: str
) -> None:
    config = config_of(tmp_path / name, "masked", f"data.train={glyph_shards}")
    with pytest.raises((ConfigError, CheckpointError), match=said):
        check_start(config, 1)
