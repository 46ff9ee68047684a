from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
import pytest

from data_prep.errors import DataError
from data_prep.synthetic import CLASSES, SynthOptions, render, synthesize


def _frames(path: Path) -> npt.NDArray[np.uint8]:
    with av.open(str(path)) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


def _quiet(seed: int, label: str) -> npt.NDArray[np.float64]:
    """A clip without noise: distance from the background colour, (frames, size, size)."""
    clip = render(label, SynthOptions(noise=0.0), np.random.default_rng(seed)).astype(float)
    return np.abs(clip - clip[0, 0, 0]).sum(-1)


def test_the_table_names_every_file_and_the_files_are_playable(synthetic: Path) -> None:
    with (synthetic / "annotations.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [sum(row["split"] == s for row in rows) for s in ("train", "val")] == [48, 16]
    assert {row["label"] for row in rows} == set(CLASSES)
    for row in rows:
        assert _frames(synthetic / row["path"]).shape == (8, 32, 32, 3)


def test_files_depend_on_the_seed_and_not_on_the_workers(synthetic: Path, tmp_path: Path) -> None:
    counts = {"train": 48, "val": 16}
    synthesize(tmp_path / "again", SynthOptions(clips_per_split=counts), workers=1)
    synthesize(tmp_path / "other", SynthOptions(clips_per_split=counts, seed=1), workers=1)
    names = [p.relative_to(synthetic) for p in sorted(synthetic.rglob("*.mp4"))]
    assert len(names) == 64
    for name in names:
        first = (synthetic / name).read_bytes()
        assert first == (tmp_path / "again" / name).read_bytes()
        assert first != (tmp_path / "other" / name).read_bytes()


def test_second_call_does_nothing_and_other_options_are_refused(tmp_path: Path) -> None:
    options = SynthOptions(clips_per_split={"train": 8})
    synthesize(tmp_path, options, workers=1)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    synthesize(tmp_path, options, workers=1)
    assert before == {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    with pytest.raises(DataError, match="other options"):
        synthesize(tmp_path, SynthOptions(clips_per_split={"train": 9}))


def test_output_below_a_file_is_bad_input(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match="cannot be written"):
        synthesize(tmp_path / "file" / "out", SynthOptions())


@pytest.mark.parametrize(
    ("label", "axis", "sign"), [("left", 1, -1), ("right", 1, 1), ("up", 0, -1), ("down", 0, 1)]
)
def test_translations_move_the_way_they_are_called(label: str, axis: int, sign: int) -> None:
    grid = np.indices((32, 32))[axis]
    moved = 0.0
    for seed in range(20):
        ink = _quiet(seed, label)
        first, last = ((ink[t] * grid).sum() / ink[t].sum() for t in (0, -1))
        moved += (last - first) * sign
    assert moved / 20 > 5


def test_sizes_grow_and_shrink() -> None:
    for seed in range(20):
        assert _quiet(seed, "growing")[-1].sum() > 2 * _quiet(seed, "growing")[0].sum()
        assert _quiet(seed, "shrinking")[0].sum() > 2 * _quiet(seed, "shrinking")[-1].sum()


def test_rotations_turn_the_way_they_are_called() -> None:
    """Turning the first frame by hand explains the third one, in one direction only."""
    options = SynthOptions(noise=0.0, turn_degrees=45.0, speed_min=0.0, speed_max=0.0)
    for label, quarter_turns in (("clockwise", -1), ("counter_clockwise", 1)):
        right, wrong = 0.0, 0.0
        for seed in range(20):
            clip = render(label, options, np.random.default_rng(seed)).astype(float)
            turned = np.rot90(clip[0], quarter_turns)
            other = np.rot90(clip[0], -quarter_turns)
            right += np.abs(_centred(turned) - _centred(clip[2])).mean()
            wrong += np.abs(_centred(other) - _centred(clip[2])).mean()
        assert right < 0.5 * wrong


def _centred(image: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Rolled so that the ink's centre of mass lies in the middle."""
    ink = np.abs(image - image[0, 0]).sum(-1)
    shifts = [round(15.5 - (ink * grid).sum() / ink.sum()) for grid in np.indices(ink.shape)]
    return np.roll(ink, shifts, (0, 1))


def _traits(ink: npt.NDArray[np.float64]) -> list[float]:
    """Place, distance from the centre and size of the letter in one frame."""
    ink = ink / ink.sum()
    ys, xs = np.indices(ink.shape) - 15.5
    y, x = (ink * ys).sum(), (ink * xs).sum()
    return [y, x, float(np.hypot(x, y)), float((ink > 0.5 * ink.max()).sum())]


def _neighbour_accuracy(
    traits: npt.NDArray[np.float64], labels: npt.NDArray[np.intp], neighbours: int = 30
) -> float:
    """Top-1 of a nearest-neighbour vote, trained on every other row, tested on the rest."""
    scaled = traits / traits.std(0)
    known, asked = scaled[::2], scaled[1::2]
    nearest = np.argsort(((asked[:, None] - known[None]) ** 2).sum(-1), 1)[:, :neighbours]
    votes = [np.bincount(labels[::2][row], minlength=len(CLASSES)).argmax() for row in nearest]
    return float((np.array(votes) == labels[1::2]).mean())


def test_one_frame_says_nothing_about_the_class() -> None:
    """A random frame leaves the class to chance; the first and the last together do not."""
    random = np.random.default_rng(0)
    one, two, labels = [], [], []
    for seed in range(150):
        for number, label in enumerate(CLASSES):
            ink = _quiet(1000 + 8 * seed + number, label)
            one.append(_traits(ink[random.integers(8)]))
            two.append(_traits(ink[0]) + _traits(ink[-1]))
            labels.append(number)
    order = random.permutation(len(labels))
    shuffled = np.array(labels)[order]
    # Chance is 0.125 and 600 answers wander by 0.014.
    assert _neighbour_accuracy(np.array(one)[order], shuffled) < 0.19
    assert _neighbour_accuracy(np.array(two)[order], shuffled) > 0.5
