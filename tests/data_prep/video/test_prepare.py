"""One file -> one clip in the normal form."""

from __future__ import annotations

import errno
import io
import random
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.video.frame import VideoFrame

from data_prep.errors import MachineTrouble
from data_prep.video import decode
from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip, RejectedClip
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
    """Covers places far into the file, to which the reader seeks."""
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


def _numbered(path: Path, container: str, codec: str = "libx264", **options: str) -> None:
    """40 frames at 25 per second; the number of a frame is in its brightness."""
    with av.open(str(path), "w", format=container) as output:
        stream = output.add_stream(codec, rate=25, options={"crf": "1", **options})
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for number in range(40):
            pixels = np.full((64, 64, 3), 20 + 5 * number, np.uint8)
            frame = VideoFrame.from_ndarray(pixels).reformat(format="yuv420p")
            frame.pts, frame.time_base = number, Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _numbers(clip: PreparedClip) -> list[int]:
    with av.open(io.BytesIO(clip.video)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return [round((float(frame.mean()) - 20) / 5) for frame in frames]


@pytest.mark.parametrize("container", ["avi", "mp4", "matroska", "mpegts"])
@pytest.mark.parametrize(("start", "end"), [(0.4, 1.2), (0.0, 0.16), (0.04, 0.12), (1.2, 1.6)])
def test_a_cut_holds_just_its_frames_with_b_frames_too(
    tmp_path: Path, container: str, start: float, end: float
) -> None:
    """AVI says when frames are decoded, not when they are shown."""
    for codec, quality in (("libx264", {}), ("mpeg4", {"qmin": "1", "qmax": "1"})):
        path = tmp_path / f"{codec}.{container}"
        _numbered(path, container, codec, bf="2", g="20", **quality)
        clip = _clip(path, SETTINGS, start, end)
        assert _numbers(clip) == list(range(round(start * 25), round(end * 25))), codec
        assert clip.fps == pytest.approx(25, abs=0.1)


def _code(path: Path, *trim: float) -> str:
    answer = prepare_clip(ClipRequest(str(path), *trim, SETTINGS))
    return answer.code if isinstance(answer, RejectedClip) else "ok"


def test_an_interval_that_ends_well_past_its_file_is_refused(tmp_path: Path) -> None:
    """Clips already cut, under the names of whole downloads; any other part would be wrong."""
    path = tmp_path / "x.mp4"
    _numbered(path, "mp4", bf="0")  # 1.6 s
    ends = {1.6: "ok", 2.0: "ok", 2.2: "past_end", 20.0: "past_end"}
    assert {end: _code(path, 0.4, end) for end in ends} == ends
    assert _code(path, 5.0, 9.0) == "past_end"
    assert _code(path, 0.41, 0.42) == "no_frames"
    answer = prepare_clip(ClipRequest(str(path), 1.0, 11.0, SETTINGS))
    assert answer == RejectedClip(
        "past_end",
        "it ends at 1.60 s, the interval is 1 to 11 s; is the file a clip that is cut already?",
    )


class _FailingDisk(io.FileIO):
    def read(self, size: int | None = -1) -> bytes:
        if self.tell() >= 1000:
            raise OSError(errno.EIO, "Input/output error")
        return super().read(1000 - self.tell()) or b""


@pytest.mark.parametrize("container", ["avi", "mp4", "mpegts"])
def test_an_io_error_is_no_damage(
    tmp_path: Path, container: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Demuxers take an I/O error for the end of the file. The failing disk is simulated."""
    path = tmp_path / f"x.{container}"
    _numbered(path, container, crf="1")
    assert _code(path, 0.0, 1.6) == "ok"
    monkeypatch.setattr(decode, "open", lambda name, *_, **__: _FailingDisk(name), raising=False)
    with pytest.raises(MachineTrouble, match=r"cannot be read \(Input/output error\)"):
        prepare_clip(ClipRequest(str(path), 0.0, 1.6, SETTINGS))
