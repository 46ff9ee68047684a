"""Frame numbers of clips: inside the video, in order, and reproducible."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.data.sampling import eval_frames, train_frames

KINDS = ("tsn", "dense", "segment")
kinds = st.sampled_from(KINDS)
totals, clip_lengths, strides = st.integers(1, 400), st.integers(1, 64), st.integers(1, 8)


@given(kinds, totals, clip_lengths, strides, st.integers(0, 2**32))
def test_training_frames_lie_in_the_video_in_order(kind, total, num, stride, seed) -> None:
    frames = train_frames(kind, total, num, stride, np.random.default_rng(seed))
    assert frames.shape == (num,)
    assert frames.min() >= 0
    assert frames.max() < total
    assert (np.diff(frames) >= 0).all()
    again = train_frames(kind, total, num, stride, np.random.default_rng(seed))
    assert (frames == again).all()


@given(kinds, totals, clip_lengths, strides, st.integers(1, 10))
def test_evaluation_frames_lie_in_the_video_in_order(kind, total, num, stride, clips) -> None:
    frames = eval_frames(kind, total, num, stride, clips)
    assert frames.shape == (clips, num)
    assert frames.min() >= 0
    assert frames.max() < total
    assert (np.diff(frames, axis=1) >= 0).all()


@given(kinds, st.integers(1, 64), st.integers(1, 10))
def test_a_video_of_one_frame_is_repeated(kind, num, clips) -> None:
    assert not train_frames(kind, 1, num, 4, np.random.default_rng(0)).any()
    assert not eval_frames(kind, 1, num, 4, clips).any()


def test_tsn_follows_the_published_formula() -> None:
    """round(seg * i) + int(seg / (K + 1) * (k + 1)) with seg = (V - 1) / T."""
    total, num, clips = 250, 16, 4
    seg = (total - 1) / num
    expected = [
        [int(np.round(seg * i)) + int(seg / (clips + 1) * (k + 1)) for i in range(num)]
        for k in range(clips)
    ]
    assert eval_frames("tsn", total, num, 1, clips).tolist() == expected


def test_tsn_training_reaches_every_frame() -> None:
    rng = np.random.default_rng(0)
    seen = np.unique([train_frames("tsn", 30, 8, 1, rng) for _ in range(300)])
    assert seen.tolist() == list(range(30))


def test_dense_windows_span_the_video_and_keep_the_stride() -> None:
    frames = eval_frames("dense", 100, 8, 4, 3)
    assert (np.diff(frames, axis=1) == 4).all()
    assert frames[0, 0] == 0
    assert frames[-1, -1] == 99


def test_dense_holds_the_last_frame_of_a_short_video() -> None:
    frames = train_frames("dense", 10, 5, 4, np.random.default_rng(0))
    assert frames.tolist() == [0, 4, 8, 9, 9]


@pytest.mark.parametrize("clips", [1, 2, 3, 5])
def test_segment_clips_interleave(clips: int) -> None:
    frames = eval_frames("segment", 16 * clips, 16, 1, clips)
    assert sorted(frames.ravel()) == list(range(16 * clips))
    assert frames[:, 0].tolist() == list(range(clips))


@pytest.mark.parametrize("kind", KINDS)
def test_no_frames_at_all_is_an_error(kind) -> None:
    with pytest.raises(ValueError, match="a video of 0 frames"):
        train_frames(kind, 0, 8, 1, np.random.default_rng(0))


@pytest.mark.parametrize(
    ("kind", "total", "num", "clips", "expected"),
    [
        # tsn, seg = (V - 1) / T: starts round(seg * i), then int(seg / (K + 1) * (k + 1)) further.
        ("tsn", 3, 8, 1, [[0, 0, 0, 1, 1, 1, 2, 2]]),  # V < T: 0, .25, .5, .75, 1, 1.25, 1.5, 1.75
        ("tsn", 8, 8, 2, [[0, 1, 2, 3, 4, 4, 5, 6]] * 2),  # V = T: 7/8 i, and int(.29), int(.58)
        ("tsn", 17, 4, 3, [[1, 5, 9, 13], [2, 6, 10, 14], [3, 7, 11, 15]]),  # seg 4
        # segment: centres of K * T equal parts of V frames, dealt to the clips in turn.
        ("segment", 3, 4, 1, [[0, 1, 1, 2]]),  # V < T: .375, 1.125, 1.875, 2.625
        ("segment", 4, 4, 1, [[0, 1, 2, 3]]),  # V = T
        ("segment", 4, 4, 2, [[0, 1, 2, 3], [0, 1, 2, 3]]),  # .25, .75, 1.25, ...
        ("segment", 12, 2, 3, [[1, 7], [3, 9], [5, 11]]),  # 1, 3, 5, 7, 9, 11
        # dense, stride 2: a window of 7 frames; the last start is V - 7.
        ("dense", 3, 4, 1, [[0, 2, 2, 2]]),  # V < T: the last frame is held
        ("dense", 4, 4, 3, [[0, 2, 3, 3]] * 3),  # V = T: one start, for every clip
        ("dense", 7, 4, 2, [[0, 2, 4, 6]] * 2),  # V = the window
        ("dense", 12, 4, 3, [[0, 2, 4, 6], [2, 4, 6, 8], [5, 7, 9, 11]]),  # 0, 5 * 1 // 2, 5
        ("dense", 12, 4, 1, [[2, 4, 6, 8]]),  # the central one: 5 // 2
    ],
)
def test_evaluation_frames_by_hand(kind, total, num, clips, expected) -> None:
    assert eval_frames(kind, total, num, 2, clips).tolist() == expected


class Extreme:
    """Draws that are all the lowest, or all about the highest, that a generator may give."""

    def __init__(self, highest: bool) -> None:
        self.highest = highest

    def integers(self, low, high=None, endpoint=False):
        low, high = (np.zeros_like(low), low) if high is None else (low, high)
        return np.asarray(high) - (0 if endpoint else 1) if self.highest else np.asarray(low)

    def random(self, size):
        return np.full(size, 1 - 1e-9 if self.highest else 0.0)


@pytest.mark.parametrize(
    ("kind", "total", "num", "lowest", "highest"),
    [
        # tsn: frame i lies between round(seg * i) and round(seg * (i + 1)), both included.
        ("tsn", 17, 4, [0, 4, 8, 12], [4, 8, 12, 16]),
        ("tsn", 5, 4, [0, 1, 2, 3], [1, 2, 3, 4]),  # V = T + 1: seg 1
        ("tsn", 4, 4, [0, 1, 2, 2], [1, 2, 2, 3]),  # V = T: 0, .75, 1.5 -> 2, 2.25 -> 2, 3
        ("tsn", 2, 4, [0, 0, 0, 1], [0, 0, 1, 1]),  # V < T: 0, .25, .5 -> 0, .75 -> 1, 1
        # segment: frame i lies in [i, i + 1) * V / T.
        ("segment", 16, 4, [0, 4, 8, 12], [3, 7, 11, 15]),
        ("segment", 4, 4, [0, 1, 2, 3], [0, 1, 2, 3]),
        ("segment", 2, 4, [0, 0, 1, 1], [0, 0, 1, 1]),
        # dense, stride 2: the start lies between 0 and V - 7.
        ("dense", 12, 4, [0, 2, 4, 6], [5, 7, 9, 11]),
        ("dense", 4, 4, [0, 2, 3, 3], [0, 2, 3, 3]),
        ("dense", 2, 4, [0, 1, 1, 1], [0, 1, 1, 1]),
    ],
)
def test_the_bounds_of_training_frames_by_hand(kind, total, num, lowest, highest) -> None:
    for is_highest, expected in ((False, lowest), (True, highest)):
        rng = Extreme(is_highest)
        assert train_frames(kind, total, num, 2, rng).tolist() == expected  # type: ignore[arg-type]
