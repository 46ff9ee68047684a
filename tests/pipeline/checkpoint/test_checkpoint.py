from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.checkpoint import layout, save
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.load import newest_valid, read_full_state, read_weights
from pipeline.checkpoint.save import CheckpointSaver
from pipeline.errors import CheckpointError, SaveError
from pipeline.rundir import durable
from pipeline.training.distributed import World
from pipeline.training.zero_state import STATE_KEYS, Fragment

ALONE = World(rank=0, size=1, local_rank=0, device=torch.device("cpu"))


def two_fragments(step: int) -> Iterator[Fragment]:
    """A parameter of 6 elements."""
    values = torch.arange(6.0) + step
    for start in (0, 4):
        piece = values[start : start + 4 if start == 0 else 6]
        yield Fragment("w", start, {key: piece * (i + 1) for i, key in enumerate(STATE_KEYS)})


def state(step: int, best_step: int = -1) -> RunState:
    return RunState(
        step=step,
        position=step * 8,
        adam_steps=step,
        world_size=1,
        zero_stage=1,
        shapes={"w": (2, 3)},
        classes=("a", "b"),
        data_digest="d",
        best_step=best_step,
    )


def saver(root: Path, **config: object) -> CheckpointSaver:
    return CheckpointSaver(root, CheckpointConfig.model_validate(config), ALONE)


def write(target: CheckpointSaver, step: int, best_step: int = -1) -> Path:
    target.save(two_fragments(step), state(step, best_step), "name: x\n")
    target.finish()
    return target.path_of(step)


def test_fragments_come_back_whole(tmp_path: Path) -> None:
    path = write(saver(tmp_path), 7)
    read, full = read_full_state(path)
    assert read == state(7)
    assert torch.equal(full["w"]["param"], torch.arange(7.0, 13.0).view(2, 3))
    assert torch.equal(full["w"]["exp_avg_sq"], 3 * torch.arange(7.0, 13.0).view(2, 3))
    assert list(read_weights(path)) == ["w"]


def flip_a_bit(path: Path) -> None:
    shard = next(layout.shard_files(path))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)


def truncate(path: Path) -> None:
    shard = next(layout.shard_files(path))
    shard.write_bytes(shard.read_bytes()[:-4])


def lose_a_file(path: Path) -> None:
    (path / layout.STATE_FILE).unlink()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "does not match its committed sha256"),
        (truncate, "bytes were committed|were committed"),
        (lose_a_file, "state.json is missing"),
    ],
)
def test_damage_is_found_and_the_checkpoint_before_is_taken(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damage, message: str
) -> None:
    target = saver(tmp_path)
    older, newer = write(target, 1), write(target, 2)
    damage(newer)
    with pytest.raises(CheckpointError, match=message):
        layout.verify(newer)
    with caplog.at_level(logging.ERROR):
        assert newest_valid(tmp_path) == older
    assert "falling back" in caplog.text
    damage(older)
    with pytest.raises(CheckpointError, match="none of the 2 checkpoints"):
        newest_valid(tmp_path)


def test_without_a_marker_nothing_is_there_and_leftovers_are_removed(tmp_path: Path) -> None:
    path = write(saver(tmp_path), 3)
    (path / layout.MARKER).unlink()
    (tmp_path / "step-00000004.tmp").mkdir()
    assert newest_valid(tmp_path) is None
    with pytest.raises(CheckpointError, match="no COMMITTED marker"):
        read_full_state(path)
    saver(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_sound_checkpoint_of_another_shape_is_passed_over(tmp_path: Path) -> None:
    target = saver(tmp_path)
    older, newer = write(target, 1), write(target, 2)
    (newer / layout.STATE_FILE).write_text('{"step": 2}')
    marker = json.loads((newer / layout.MARKER).read_text())
    told = (newer / layout.STATE_FILE).read_bytes()
    marker["files"][layout.STATE_FILE] = {
        "bytes": len(told),
        "sha256": hashlib.sha256(told).hexdigest(),
    }
    (newer / layout.MARKER).write_text(json.dumps(marker))
    layout.verify(newer)
    assert newest_valid(tmp_path) == older


def test_what_is_not_ours_stays_and_is_not_followed(tmp_path: Path) -> None:
    root, elsewhere = tmp_path / "checkpoints", tmp_path / "elsewhere"
    (elsewhere / "precious").mkdir(parents=True)
    root.mkdir()
    for name in ("mine.tmp", "step-00000001.bak", "notes"):
        (root / name).mkdir()
    (root / "step-00000002").symlink_to(elsewhere)
    (root / "step-00000003.tmp").symlink_to(elsewhere)
    foreign = sorted(root.iterdir())

    target = saver(root, keep_last=1)
    newest = [write(target, step) for step in (4, 5)][-1]

    assert sorted(root.iterdir()) == sorted([*foreign, newest])
    assert (elsewhere / "precious").is_dir()


def test_retention_keeps_the_newest_the_best_and_every_nth(tmp_path: Path) -> None:
    target = saver(tmp_path, keep_last=2, keep_every_steps=4)
    for step in range(1, 8):
        write(target, step, best_step=min(step, 2))
    assert steps_in(tmp_path) == [2, 4, 6, 7]


def steps_in(root: Path) -> list[int]:
    return [layout.step_of(path) for path in layout.committed(root)]


@pytest.mark.parametrize("keep_last", [1, 2])
def test_what_was_just_saved_outlives_corrupt_checkpoints_of_later_steps(
    tmp_path: Path, keep_last: int
) -> None:
    target = saver(tmp_path, keep_last=keep_last)
    older = write(target, 100)
    for step in (200, 300):
        shutil.copytree(older, target.path_of(step))
        flip_a_bit(target.path_of(step))
    assert newest_valid(tmp_path) == older

    write(target, 150)

    assert steps_in(tmp_path) == [100, 150][-keep_last:]


def test_a_checkpoint_counts_though_an_older_one_cannot_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    target = saver(tmp_path, keep_last=1)
    (write(target, 1) / layout.STATE_FILE).write_text("")  # that of another is not read

    def busy(path: Path) -> None:
        raise OSError(errno.ENOTEMPTY, "Directory not empty", str(path))

    monkeypatch.setattr(layout, "delete", busy)
    target.save(two_fragments(2), state(2), "")
    target.finish()

    assert newest_valid(tmp_path) == target.path_of(2)
    assert "cannot be deleted: [Errno 39] Directory not empty" in caplog.text


def test_a_full_disk_stops_the_run_and_leaves_older_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = saver(tmp_path)
    older = write(target, 1)

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    target.save(two_fragments(2), state(2), "")
    with pytest.raises(SaveError, match=r"No space left on device.*older .* intact"):
        target.finish()
    assert newest_valid(tmp_path) == older


@pytest.mark.parametrize("instant", ["sync_file", "rename", "write_json", "write_text"])
@pytest.mark.parametrize("occurrence", [1, 2, 3, 4])
def test_death_at_any_instant_of_a_save_is_never_read_as_a_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, instant: str, occurrence: int
) -> None:
    """The process dies at every durable step of the second save, in turn."""
    older = write(saver(tmp_path), 1)
    calls = 0
    real = getattr(save.durable, instant)

    def dying(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == occurrence:
            raise RuntimeError("killed here")
        return real(*arguments)

    monkeypatch.setattr(save.durable, instant, dying)
    target = saver(tmp_path)
    target.save(two_fragments(2), state(2), "")
    try:
        target.finish()
    except SaveError:
        assert newest_valid(tmp_path) == older
    else:
        assert calls < occurrence
        layout.verify(target.path_of(2))


def test_the_folder_of_a_new_file_may_move_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 0 renames the staging directory as soon as it sees the record of the last shard."""
    staging, final = tmp_path / "step.tmp", tmp_path / "step"
    staging.mkdir()
    real = Path.rename

    def watched(source: Path, target: Path) -> Path:
        moved = real(source, target)
        real(staging, final)
        return moved

    monkeypatch.setattr(Path, "rename", watched)
    durable.write_json(staging / "record.json", {})

    assert durable.read_json(final / "record.json") == {}


def saves_until_killed(root: Path, instant: int) -> bool:
    """Save step 2 in a process that SIGKILLs itself before its n-th touch of the disk.

    Returns whether it was killed.
    """
    child = os.fork()
    if child == 0:
        touches = 0

        def hook(event: str, arguments: tuple[object, ...]) -> None:
            nonlocal touches
            touched = event in ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
            if touched and str(root) in str(arguments[0]):
                touches += 1
                if touches == instant:
                    os.kill(os.getpid(), signal.SIGKILL)

        target = saver(root, keep_last=1)
        sys.addaudithook(hook)
        write(target, 2)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    assert status in (0, signal.SIGKILL)
    return status == signal.SIGKILL


def test_sigkill_at_every_instant_of_a_save_leaves_a_whole_checkpoint(tmp_path: Path) -> None:
    outcomes = []
    while True:
        root = tmp_path / str(len(outcomes))
        older = write(saver(root, keep_last=1), 1)
        killed = saves_until_killed(root, len(outcomes) + 1)
        newest = newest_valid(root)
        assert newest is not None
        layout.verify(newest)
        outcomes.append(layout.step_of(newest))
        if not killed:
            break
        saver(root)  # the next attempt clears away what was left
        assert {p.name for p in root.iterdir()} <= {older.name, "step-00000002"}
    # Only after its marker does the new one count, and from then on the old one may go.
    assert len(outcomes) > 20
    assert outcomes == sorted(outcomes)
    assert set(outcomes) == {1, 2}


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    target = saver(tmp_path)
    flip_a_bit(write(target, 5))
    layout.verify(write(target, 5))
