"""One file -> one clip in the normal form."""

from __future__ import annotations

import io
import random
from pathlib import Path

import av
import pytest

from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip
from data_prep.video.prepare import prepare_clip

SETTINGS = EncodeSettings()


def _clip(path: Path, settings: EncodeSettings = SETTINGS, *trim: float) -> PreparedClip:
    start, end = trim or (0.0, None)
    prepared = prepare_clip(ClipRequest(str(path), start, end, settings))
    assert isinstance(prepared, PreparedClip), prepared
    return prepared


def test_normal_form(real_videos: Path) -> None:
    clip = _clip(real_videos / "skeleton_demo.mp4")
    assert clip.video.find(b"moov") < clip.video.find(b"mdat")
    with av.open(io.BytesIO(clip.video)) as container:
        (stream,) = container.streams
        context = stream.codec_context
        assert (context.name, context.pix_fmt, context.has_b_frames) == ("h264", "yuv420p", False)
        packets = [p for p in container.demux(stream) if p.pts is not None]
        assert (packets[0].pts, packets[0].dts) == (0, 0)
        assert [i for i, p in enumerate(packets) if p.is_keyframe] == [0, 16, 32, 48, 64]
    assert (clip.width, clip.height, clip.frames) == (454, 256, 72)


def test_the_best_stream_is_taken_not_the_first(real_videos: Path) -> None:
    clip = _clip(real_videos / "nasa_13013.mp4")
    assert (clip.original.width, clip.original.height) == (480, 270)


def test_small_sources_are_not_enlarged(synthetic: Path) -> None:
    clip = _clip(synthetic / "train/000000.mp4")
    assert (clip.width, clip.height) == (32, 32)


def test_sample_aspect_is_recorded_and_applied_on_request(real_videos: Path) -> None:
    path = real_videos / "arm_wrestling.mp4"
    assert _clip(path).original.sample_aspect == pytest.approx(64 / 51)
    assert _clip(path).width == 340
    stretched = _clip(path, EncodeSettings(apply_sample_aspect=True))
    assert (stretched.width, stretched.height) == (426, 256)


def test_trim_takes_the_frames_of_its_interval(real_videos: Path) -> None:
    """Also far into the file, where the reader seeks instead of decoding from the start."""
    path = real_videos / "nasa_13013.mp4"
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        assert stream is not None
        times = [frame.time for frame in container.decode(stream)]
    for start, end in ((0.5, 1.5), (9.0, 10.25)):
        clip = _clip(path, SETTINGS, start, end)
        assert clip.frames == sum(start - 1e-3 <= time - times[0] < end for time in times)
        assert clip.fps == pytest.approx(30000 / 1001)


def test_same_bytes_whatever_was_encoded_before(synthetic: Path) -> None:
    """x264's macroblock tree fails this."""
    paths = sorted(synthetic.rglob("*.mp4"))
    first = {path: _clip(path).sha256 for path in paths}
    order = random.Random(0).choices(paths, k=400)
    assert all(_clip(path).sha256 == first[path] for path in order)
