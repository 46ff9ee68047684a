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
