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
    ("kind", "total", "num", "stride", "clips", "expected"),
    [
        # tsn: seg = (V - 1) / T; round(seg * i), halves to even, + int(seg / (K + 1) * (k + 1))
        ("tsn", 17, 4, 1, 2, [[1, 5, 9, 13], [2, 6, 10, 14]]),
        ("tsn", 17, 4, 1, 1, [[2, 6, 10, 14]]),
        ("tsn", 8, 8, 1, 1, [[0, 1, 2, 3, 4, 4, 5, 6]]),  # V = T: seg = 7 / 8
        ("tsn", 5, 8, 1, 1, [[0, 0, 1, 2, 2, 2, 3, 4]]),  # V < T: seg = 1 / 2
        ("tsn", 5, 8, 1, 3, [[0, 0, 1, 2, 2, 2, 3, 4]] * 3),  # each part has but one frame
        ("tsn", 2, 4, 1, 1, [[0, 0, 0, 1]]),
        ("dense", 10, 4, 2, 1, [[1, 3, 5, 7]]),  # starts 0 to 3; a single clip is in the middle
        ("dense", 10, 4, 2, 2, [[0, 2, 4, 6], [3, 5, 7, 9]]),
        ("dense", 10, 4, 2, 3, [[0, 2, 4, 6], [1, 3, 5, 7], [3, 5, 7, 9]]),
        ("dense", 7, 4, 2, 3, [[0, 2, 4, 6]] * 3),  # the window fills the video
        ("dense", 3, 4, 2, 2, [[0, 2, 2, 2]] * 2),  # and here it is longer
        ("dense", 4, 4, 1, 1, [[0, 1, 2, 3]]),
        ("segment", 16, 4, 1, 2, [[1, 5, 9, 13], [3, 7, 11, 15]]),
        ("segment", 16, 4, 1, 1, [[2, 6, 10, 14]]),
        ("segment", 8, 8, 1, 1, [list(range(8))]),
        ("segment", 4, 8, 1, 1, [[0, 0, 1, 1, 2, 2, 3, 3]]),
        ("segment", 3, 2, 1, 3, [[0, 1], [0, 2], [1, 2]]),
        ("segment", 1, 1, 1, 1, [[0]]),
    ],
)
def test_evaluation_frames_by_hand(kind, total, num, stride, clips, expected) -> None:
    assert eval_frames(kind, total, num, stride, clips).tolist() == expected


@pytest.mark.parametrize(
    ("kind", "total", "num", "stride", "lowest", "highest"),
    [
        ("tsn", 17, 4, 1, [0, 4, 8, 12], [4, 8, 12, 16]),  # inclusive bounds, shared
        ("tsn", 8, 8, 1, [0, 1, 2, 3, 4, 4, 5, 6], [1, 2, 3, 4, 4, 5, 6, 7]),
        ("tsn", 5, 8, 1, [0, 0, 1, 2, 2, 2, 3, 4], [0, 1, 2, 2, 2, 3, 4, 4]),
        ("dense", 10, 4, 2, [0, 2, 4, 6], [3, 5, 7, 9]),
        ("dense", 3, 4, 2, [0, 2, 2, 2], [0, 2, 2, 2]),
        ("segment", 16, 4, 1, [0, 4, 8, 12], [3, 7, 11, 15]),
        ("segment", 8, 8, 1, list(range(8)), list(range(8))),
        ("segment", 4, 8, 1, [0, 0, 1, 1, 2, 2, 3, 3], [0, 0, 1, 1, 2, 2, 3, 3]),
    ],
)
def test_training_frames_reach_their_bounds(kind, total, num, stride, lowest, highest) -> None:
    rng = np.random.default_rng(0)
    drawn = np.stack([train_frames(kind, total, num, stride, rng) for _ in range(200)])
    assert drawn.min(0).tolist() == lowest
    assert drawn.max(0).tolist() == highest
