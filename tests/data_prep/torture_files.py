"""Writes a folder of files that break video pipelines: `python torture_files.py DIRECTORY`.

`DIRECTORY/any/` holds the files and `DIRECTORY/expected.json` what each of them must become: the
number of frames in the shard or the reason in the quarantine.
"""

from __future__ import annotations

import io
import json
import os
import sys
import wave
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import numpy.typing as npt
from av.stream import Disposition
from av.video.frame import VideoFrame
from PIL import Image, ImageCms

FRAMES = 40
# Quadrants of every picture: red, green, blue, white, read row by row when upright.
CORNERS = np.array([[230, 30, 30], [30, 200, 30], [30, 30, 230], [235, 235, 235]], dtype=np.uint8)

Make = Callable[[Path], object]


@dataclass(frozen=True)
class Case:
    name: str
    make: Make
    expected: int | str
    """Frames in the shard, or the reason in the quarantine."""
    upright: bool = True
    """Whether the corners can be told apart after decoding."""


def _picture(width: int, height: int) -> npt.NDArray[np.uint8]:
    image = np.empty((height, width, 3), dtype=np.uint8)
    y, x = height // 2, width // 2
    image[:y, :x], image[:y, x:], image[y:, :x], image[y:, x:] = CORNERS
    return image


def _pictures(width: int, height: int, count: int) -> Iterator[npt.NDArray[np.uint8]]:
    """The quadrants with noise that moves, so that every frame costs bits."""
    random = np.random.default_rng(0)
    for _ in range(count):
        noisy = _picture(width, height) + random.normal(0, 12, (height, width, 3))
        yield np.clip(noisy, 0, 255).astype(np.uint8)


def _write(
    path: Path | io.BytesIO,
    *,
    codec: str = "libx264",
    container: str = "mp4",
    pixels: str = "yuv420p",
    size: tuple[int, int] = (96, 64),
    count: int = FRAMES,
    times: Callable[[int], int] = lambda n: n,
    turn: Callable[[npt.NDArray[np.uint8]], npt.NDArray[np.uint8]] = lambda image: image,
    options: dict[str, str] | None = None,
    movflags: str = "+faststart",
    **stream_attributes: Any,
) -> None:
    """A file of the coloured quadrants at 25 frames per second."""
    mux = {"movflags": movflags} if movflags and container == "mp4" else {}
    target = str(path) if isinstance(path, Path) else path
    with av.open(target, "w", format=container, options=mux) as output:
        # The tree makes bytes depend on earlier encodes, and a file's length decides one case.
        steady = {"mbtree": "0"} if codec == "libx264" else {}
        stream = output.add_stream(codec, rate=25, options=steady | (options or {}))
        pictures = [turn(image) for image in _pictures(*size, count)]
        stream.height, stream.width = pictures[0].shape[:2]
        stream.pix_fmt = pixels
        rotation = stream_attributes.pop("rotation", None)
        flips = {name: stream_attributes.pop(name, False) for name in ("hflip", "vflip")}
        for name, value in stream_attributes.items():
            setattr(stream.codec_context, name, value)
        if rotation is not None:
            stream.set_display_rotation(rotation, **flips)
        for number, image in enumerate(pictures):
            frame = VideoFrame.from_ndarray(np.ascontiguousarray(image)).reformat(format=pixels)
            frame.pts, frame.time_base = times(number), Fraction(1, 25)
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _video(**arguments: Any) -> Make:
    return lambda path: _write(path, **arguments)


def _bytes(**arguments: Any) -> bytes:
    arguments.setdefault("movflags", "")
    buffer = io.BytesIO()
    _write(buffer, **arguments)
    return buffer.getvalue()


def _damaged(change: Callable[[bytearray], bytes | bytearray], **arguments: Any) -> Make:
    """A sound file, then changed."""

    def make(path: Path) -> None:
        _write(path, size=(192, 128), **arguments)
        path.write_bytes(change(bytearray(path.read_bytes())))

    return make


def _content(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def _zero_hole(data: bytearray) -> bytearray:
    middle = len(data) // 2
    data[middle : middle + 4000] = bytes(4000)
    return data


def _flip_bits(count: int) -> Callable[[bytearray], bytearray]:
    def flip(data: bytearray) -> bytearray:
        start = data.find(b"mdat") + 4
        for place in np.random.default_rng(1).integers(start + 2000, len(data), count):
            data[place] ^= 1 << int(place) % 8
        return data

    return flip


def _huge_duration(data: bytearray) -> bytearray:
    """mvhd and tkhd say 2^31 ticks."""
    for box, offset in ((b"mvhd", 20), (b"tkhd", 24)):
        place = data.find(box) + offset
        data[place : place + 4] = (2**31).to_bytes(4, "big")
    return data


def _no_matrix(data: bytearray) -> bytearray:
    """tkhd says that the picture is to be flattened."""
    place = data.find(b"tkhd") + 4 + 40
    data[place : place + 32] = bytes(32)
    return data


def _no_first_keyframe(path: Path) -> None:
    """An elementary stream from which the first group's keyframe is cut."""
    raw = _bytes(codec="libx264", container="h264", options={"g": "20", "bf": "0"})
    keyframe = raw.find(b"\x00\x00\x01\x65")
    following = raw.find(b"\x00\x00\x01\x41", keyframe)
    path.write_bytes(raw[:keyframe] + raw[following:])


def _glued(container: str) -> Make:
    """Two streams of different sizes, one after the other."""
    sizes = ((96, 80), (128, 96))
    return lambda path: path.write_bytes(
        b"".join(_bytes(container=container, size=size) for size in sizes)
    )


def _sound(path: Path) -> None:
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    buffer.seek(0)
    with av.open(buffer) as source, av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream("aac", rate=8000)
        for frame in source.decode(audio=0):
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))


def _two_streams(path: Path) -> None:
    """A thumbnail-sized first stream; the second one is the film."""
    with av.open(str(path), "w", format="mp4") as output:
        streams = []
        for width, height in ((48, 32), (192, 128)):
            stream = output.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.disposition = Disposition.default if width > 48 else Disposition(0)
            streams.append(stream)
        for number in range(FRAMES):
            for stream in streams:
                image = _picture(stream.width, stream.height)
                frame = VideoFrame.from_ndarray(image).reformat(format="yuv420p")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                output.mux(stream.encode(frame))
        for stream in streams:
            output.mux(stream.encode(None))


def _edit_list(path: Path) -> None:
    """Cut without encoding: packets from the keyframe on, shown from 10 frames later."""
    source = io.BytesIO(_bytes(options={"g": "20", "bf": "0"}))
    with av.open(source) as whole, av.open(str(path), "w", format="mp4") as output:
        stream = output.add_stream_from_template(whole.streams.video[0])
        for packet in whole.demux(video=0):
            if packet.dts is None:
                continue
            shift = int(10 / 25 / packet.time_base)
            packet.pts, packet.dts = packet.pts - shift, packet.dts - shift
            packet.stream = stream
            output.mux(packet)


def _link(target: str) -> Make:
    def make(path: Path) -> None:
        path.symlink_to(target)

    return make


def _image(codec: str, pixels: str) -> Make:
    return _video(codec=codec, container="image2", pixels=pixels, count=1)


def _exif(orientation: int, **options: Any) -> Make:
    """A photograph that lies as the camera was held; EXIF orientation says how to turn it."""

    def make(path: Path) -> None:
        stored = LIES[orientation](_picture(96, 64))
        exif = Image.Exif()
        exif[EXIF_ORIENTATION] = orientation
        Image.fromarray(np.ascontiguousarray(stored)).save(path, exif=exif, **options)

    return make


PQ = {"color_primaries": 9, "color_trc": 16, "colorspace": 9}
ROTATIONS: dict[int, Any] = {
    90: lambda image: np.rot90(image, -1),
    180: lambda image: np.rot90(image, 2),
    270: lambda image: np.rot90(image, 1),
}
EXIF_ORIENTATION = 0x0112
ICC_PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
# orientation -> how an upright picture lies in the file
LIES: dict[int, Any] = {
    1: lambda image: image,
    2: np.fliplr,
    3: lambda image: np.rot90(image, 2),
    4: np.flipud,
    5: lambda image: np.swapaxes(image, 0, 1),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: np.rot90(np.swapaxes(image, 0, 1), 2),
    8: lambda image: np.rot90(image, -1),
}
BT709 = {"color_primaries": 1, "color_trc": 1, "colorspace": 1}
PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2,\nnormal.mp4\n#EXT-X-ENDLIST\n"
NORMAL = _video()
CASES = [
    Case("normal.mp4", NORMAL, FRAMES),
    Case("empty.mp4", _content(b""), "empty"),
    Case("one byte.mp4", _content(b"\0"), "not_video"),
    Case("web page.mp4", _content(b"<!DOCTYPE html><title>429</title>" * 50), "not_video"),
    Case("random bytes.mp4", _content(np.random.default_rng(0).bytes(50_000)), "not_video"),
    Case("playlist named.mp4", _content(PLAYLIST), "not_video"),
    Case("first 100 bytes.mp4", _damaged(lambda d: d[:100]), "no_video"),
    Case("no index at the end.mp4", _damaged(lambda d: d[: len(d) // 2], movflags=""), "not_video"),
    Case("second half missing.mp4", _damaged(lambda d: d[: len(d) // 2]), "corrupt"),
    Case("hole of zeros.mp4", _damaged(_zero_hole), "corrupt"),
    Case("many flipped bits.mp4", _damaged(_flip_bits(400)), "corrupt"),
    Case("twenty flipped bits.mp4", _damaged(_flip_bits(20)), "corrupt"),
    Case("duration of 2^31.mp4", _damaged(_huge_duration), FRAMES),
    Case("audio only.mp4", _sound, "no_video"),
    Case("no frames.mp4", _damaged(lambda d: d[: d.find(b"mdat") + 4]), "no_frames"),
    Case(
        "jpeg named.mp4",
        _content(_bytes(codec="mjpeg", container="mjpeg", pixels="yuvj420p", count=1)),
        "too_short",
    ),
    Case("one frame.mp4", _video(count=1), "too_short"),
    Case("two frames.mp4", _video(count=2), 2),
    Case("image.jpg", _image("mjpeg", "yuvj420p"), 1),
    Case("image.png", _image("png", "rgb24"), 1),
    Case("8 x 8 pixels.mp4", _video(size=(8, 8)), "too_small"),
    Case(
        "odd size 97 x 65.mkv",
        _video(codec="ffv1", container="matroska", pixels="yuv444p", size=(97, 65)),
        FRAMES,
    ),
    Case("1920 x 1080.mp4", _video(size=(1920, 1080), count=4), 4),
    Case("tall 64 x 400.mp4", _video(size=(64, 400)), FRAMES),
    *(
        Case(f"rotated by {angle}.mp4", _video(rotation=angle, turn=turn), FRAMES)
        for angle, turn in ROTATIONS.items()
    ),
    Case("mirrored.mp4", _video(rotation=0, hflip=True, turn=np.fliplr), FRAMES),
    Case("upside down mirrored.mp4", _video(rotation=0, vflip=True, turn=np.flipud), FRAMES),
    *(
        Case(f"EXIF orientation {number}.{suffix}", _exif(number, **options), 1)
        for number in LIES
        for suffix, options in (("jpg", {"quality": 95}), ("png", {}), ("webp", {"quality": 95}))
    ),
    *(
        Case(f"colour profile.{suffix}", _exif(6, icc_profile=ICC_PROFILE), 1)
        for suffix in ("jpg", "png", "webp")
    ),
    Case("display matrix of zeros.mp4", _damaged(_no_matrix), FRAMES),
    Case("pixels 2 to 1.mp4", _video(sample_aspect_ratio=Fraction(2)), FRAMES),
    Case("variable rate.mp4", _video(times=lambda n: n * n), FRAMES),
    Case("starts at 2 h.ts", _video(container="mpegts", times=lambda n: n + 180_000), FRAMES),
    Case("starts at 2 h.mp4", _video(times=lambda n: n + 180_000, movflags="+faststart"), FRAMES),
    Case("B-frames.mp4", _video(options={"bf": "3", "g": "250"}), FRAMES),
    Case(
        "open groups.mp4", _video(options={"x264-params": "open-gop=1:keyint=10:bframes=3"}), FRAMES
    ),
    Case("intra refresh.mp4", _video(options={"x264-params": "intra-refresh=1:keyint=15"}), FRAMES),
    Case("no keyframe at the start.mp4", _no_first_keyframe, "corrupt"),
    Case("edit list.mp4", _edit_list, FRAMES - 10),
    Case("changes size.mp4", _glued("h264"), "resolution_change"),
    Case("glued together.ts", _glued("mpegts"), "corrupt"),
    Case("two video streams.mp4", _two_streams, FRAMES),
    Case(
        "10 bit.mp4",
        _video(codec="libx265", pixels="yuv420p10le", options={"x265-params": "log-level=none"}),
        FRAMES,
    ),
    Case(
        "HDR.mp4",
        _video(
            codec="libx265", pixels="yuv420p10le", options={"x265-params": "log-level=none"}, **PQ
        ),
        FRAMES,
    ),
    Case("BT.709.mp4", _video(**BT709), FRAMES),
    Case("4:4:4.mp4", _video(pixels="yuv444p"), FRAMES),
    Case("full range.mp4", _video(pixels="yuvj420p"), FRAMES),
    Case(
        "grey.mkv", _video(codec="ffv1", container="matroska", pixels="gray"), FRAMES, upright=False
    ),
    Case("alpha.mov", _video(codec="qtrle", container="mov", pixels="argb"), FRAMES),
    Case("interlaced MPEG-2.mpg", _video(codec="mpeg2video", container="mpeg"), FRAMES),
    Case(
        "VP9.webm",
        _video(codec="libvpx-vp9", container="webm", options={"deadline": "realtime"}),
        FRAMES,
    ),
    Case("AV1.mp4", _video(codec="libsvtav1", options={"preset": "12"}), FRAMES),
    Case("B-frames in.avi", _video(container="avi", options={"bf": "3", "g": "20"}), FRAMES),
    Case("Motion JPEG.avi", _video(codec="mjpeg", container="avi", pixels="yuvj420p"), FRAMES),
    Case("mkv named.mp4", _video(container="matroska"), FRAMES),
    Case("webm named.mp4", _video(codec="libvpx", container="webm"), FRAMES),
    Case(
        "animated.gif named.mp4",
        _video(codec="gif", container="gif", pixels="rgb8"),
        FRAMES,
        upright=False,
    ),
    Case("ünïcödé 視頻.mp4", NORMAL, FRAMES),
    Case("quote'\"$(x)`;&|\nnewline.mp4", NORMAL, FRAMES),
    Case("-leading-dash.mp4", NORMAL, FRAMES),
    Case("percent %03d.mp4", NORMAL, FRAMES),
    Case("file:protocol.mp4", NORMAL, FRAMES),
    Case("many.dots.V1.0.MP4", NORMAL, FRAMES),
    Case("long " + "n" * 240 + ".mp4", NORMAL, FRAMES),
    Case("not UTF-8 \udcff.mp4", NORMAL, FRAMES),
    Case("link.mp4", _link("normal.mp4"), FRAMES),
    Case("broken link.mp4", _link("nowhere.mp4"), "missing"),
    Case("notes.txt", _content(b"taken on a Tuesday"), "unknown_suffix"),
]


def main() -> None:
    root = Path(sys.argv[1])
    (root / "any").mkdir(parents=True)
    expected = {}
    for case in CASES:
        plain = root / f"plain{Path(case.name).suffix}"
        case.make(plain)
        plain.rename(root / "any" / case.name)
        name = os.fsencode(case.name).decode("utf-8", "backslashreplace")
        expected[name] = {"outcome": case.expected, "upright": case.upright}
    (root / "expected.json").write_text(json.dumps(expected))


if __name__ == "__main__":
    main()
