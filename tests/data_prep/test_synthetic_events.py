"""Clips whose class is the order of two short events: what they show, when, and what they hide."""

from __future__ import annotations

import itertools
from collections import Counter
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from pydantic import ValidationError

from data_prep.synthetic import SynthOptions, picture, synthesize
from data_prep.synthetic_events import CLASSES, COLOURS, EVENTS, EventOptions, draw_starts

BARE = EventOptions(noise=0.0, distractors=0)


def _shown(clip: npt.NDArray[np.uint8]) -> list[str]:
    """What the letter shows in each frame: a colour, grey or vanish."""
    shown = []
    for frame in clip.astype(float):
        ink = frame[np.unravel_index(frame.sum(-1).argmax(), frame.shape[:2])]
        if ink.max() < 100:
            shown.append("vanish")
            continue
        nearest = min(COLOURS, key=lambda name: float(np.abs(ink - COLOURS[name]).sum()))
        grey = np.ptp(ink) < 60
        shown.append("grey" if grey else nearest)
    return shown


def test_there_are_twenty_classes_and_each_has_its_reverse() -> None:
    assert len(set(CLASSES)) == 20
    assert {"_then_".join(reversed(name.split("_then_"))) for name in CLASSES} == set(CLASSES)


@pytest.mark.parametrize("index", range(20))
def test_a_clip_shows_its_two_events_once_and_in_order(index: int) -> None:
    label = CLASSES[index]
    shown = _shown(picture(BARE, 0, index))
    runs = [what for what, _ in itertools.groupby(shown)]
    first, second = label.split("_then_")
    assert runs[:4] == ["grey", first, "grey", second]
    assert runs[4:] in ([], ["grey"])
    length = BARE.event_frames
    assert Counter(shown) == {"grey": BARE.frames - 2 * length, first: length, second: length}


def test_the_reverse_shows_the_same_events_at_the_same_times() -> None:
    """So only the order of what happens tells a class from its reverse."""
    for index, label in enumerate(CLASSES):
        reverse = "_then_".join(reversed(label.split("_then_")))
        ours, theirs = (
            _shown(BARE.render(name, np.random.default_rng(index))) for name in (label, reverse)
        )
        assert [s == "grey" for s in ours] == [s == "grey" for s in theirs]
        assert Counter(ours) == Counter(theirs)


def test_events_begin_anywhere_with_a_frame_before_and_between() -> None:
    random = np.random.default_rng(0)
    options = EventOptions(frames=8, event_frames=2)
    drawn = Counter(draw_starts(options, random) for _ in range(1200))
    assert set(drawn) == {(1, 4), (1, 5), (1, 6), (2, 5), (2, 6), (3, 6)}
    assert min(drawn.values()) > 140  # of 200 expected


def test_the_shortest_clip_fits_and_a_shorter_one_is_refused() -> None:
    options = EventOptions(frames=6, event_frames=2)
    assert draw_starts(options, np.random.default_rng(0)) == (1, 4)
    with pytest.raises(ValidationError, match="need 6 frames or more"):
        EventOptions(frames=5, event_frames=2)


def test_distractors_add_letters_that_move() -> None:
    still = picture(EventOptions(noise=0.0, distractors=0, size=32), 0, 0).astype(float)
    busy = picture(EventOptions(noise=0.0, distractors=4, size=32), 0, 0).astype(float)
    assert _moves(busy) > 2 * _moves(still)


def _moves(clip: npt.NDArray[np.float64]) -> float:
    """Mean difference of neighbouring frames in the frame before any event, and the next."""
    return float(np.abs(clip[1:] - clip[:-1]).mean(axis=(1, 2, 3)).min())


def test_files_are_written_like_those_of_the_motions(tmp_path: Path) -> None:
    options = EventOptions(clips_per_split={"train": 20}, size=16, frames=8)
    table = synthesize(tmp_path, options, workers=1)
    lines = table.read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in lines] == list(CLASSES)
    assert len(list(tmp_path.glob("train/*.mp4"))) == 20
    assert synthesize(tmp_path, options, workers=1) == table
    assert set(EVENTS) == {*COLOURS, "vanish"}
    assert picture(options, 0, 3).shape == (8, 16, 16, 3)
    assert not np.array_equal(
        picture(options, 0, 3), picture(options.model_copy(update={"seed": 1}), 0, 3)
    )
    assert SynthOptions().classes != options.classes
