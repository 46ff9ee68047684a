"""torchcodec gives the same pixels as PyAV, or one clear line."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.decode import decode_frames
from pipeline.data.errors import DataError, SampleError

try:
    from pipeline.data import decode_torchcodec
except DataError as error:
    pytest.skip(str(error), allow_module_level=True)

LENGTH = 70


@pytest.fixture(scope="module")
def video(moving_squares, encode) -> tuple[bytes, tuple[int, ...]]:
    return encode(moving_squares(0, LENGTH, 64, 96))


@settings(max_examples=40, deadline=None)
@given(wanted=st.lists(st.integers(0, LENGTH - 1), min_size=1, max_size=20))
def test_same_frames_as_pyav(video, wanted: list[int]) -> None:
    content, keyframes = video
    got = decode_torchcodec.decode_frames(content, np.array(wanted), keyframes)
    assert (got == decode_frames(content, np.array(wanted), keyframes)).all()


@pytest.mark.parametrize(
    ("content", "wanted"), [(b"", 0), (b"not a video" * 99, 0), (None, LENGTH)]
)
def test_unreadable_video(video, content: bytes | None, wanted: int) -> None:
    content = video[0] if content is None else content
    with pytest.raises(SampleError, match="cannot be decoded") as caught:
        decode_torchcodec.decode_frames(content, np.array([wanted]), video[1])
    assert "\n" not in str(caught.value)


def test_its_absence_is_one_line() -> None:
    program = (
        "import sys; sys.modules['torchcodec'] = None\n"
        "from pipeline.data.clips import frame_decoder\n"
        "from pipeline.data.errors import DataError\n"
        "try: frame_decoder('torchcodec')\n"
        "except DataError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "set data.decoder=pyav" in done.stdout
    assert done.stdout.count("\n") == 1
