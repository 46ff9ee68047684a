"""Windows over the time of a video, and what is drawn of them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from data_prep.video.read import TimedPicture
from pipeline.errors import ConfigError
from pipeline.inference.timeline import Curves, Moment, Window, cut_windows
from pipeline.inference.timeline_plot import check_plot, clock, draw_timeline


def _video(times: list[float], shown_s: float = 0.25) -> list[TimedPicture]:
    """Pictures whose only pixel says which they are."""
    return [
        TimedPicture(time, shown_s, np.full((1, 1, 3), number, np.uint8))
        for number, time in enumerate(times)
    ]


def _numbers(window: Window) -> list[int]:
    return [int(picture[0, 0, 0]) for picture in window.pictures]


def _cuts(times: list[float], window_s: float, stride_s: float) -> list[tuple[float, float, str]]:
    windows = cut_windows(_video(times), window_s, stride_s)
    return [(w.start_s, w.end_s, " ".join(map(str, _numbers(w)))) for w in windows]


def test_windows_computed_by_hand() -> None:
    times = [number / 4 for number in range(10)]  # 2.5 s at 4 frames per second
    assert _cuts(times, 1, 1) == [(0, 1, "0 1 2 3"), (1, 2, "4 5 6 7"), (1.5, 2.5, "6 7 8 9")]
    assert _cuts(times, 1, 0.5) == [
        (0, 1, "0 1 2 3"),
        (0.5, 1.5, "2 3 4 5"),
        (1, 2, "4 5 6 7"),
        (1.5, 2.5, "6 7 8 9"),
    ]
    assert _cuts(times, 0.5, 1) == [(0, 0.5, "0 1"), (1, 1.5, "4 5"), (2, 2.5, "8 9")]
    assert _cuts(times, 9, 1) == [(0, 2.5, "0 1 2 3 4 5 6 7 8 9")]  # shorter than one window
    assert _cuts([0.0], 1, 1) == [(0, 0.25, "0")]
    assert _cuts([], 1, 1) == []


def test_a_window_in_which_no_frame_starts_has_the_one_that_is_shown() -> None:
    times = [0.0, 0.25, 5.0, 5.25]
    assert _cuts(times, 1, 1) == [
        (0, 1, "0 1"),
        *((second, second + 1, "1") for second in range(1, 5)),
        (4.5, 5.5, "2 3"),
    ]


def test_rounded_times_move_no_frame_to_another_window() -> None:
    times = [round(number / 30, 3) for number in range(60)]  # the ticks of Matroska
    lengths = [len(w.pictures) for w in cut_windows(_video(times, 1 / 30), 0.5, 0.5)]
    assert lengths == [15, 15, 15, 15]


def test_no_more_than_a_window_is_held() -> None:
    alive = most = 0

    class Pixels(np.ndarray):
        def __del__(self) -> None:
            nonlocal alive
            alive -= 1

    def frames() -> Iterator[TimedPicture]:
        nonlocal alive, most
        for number in range(2000):
            pixels = np.zeros((1, 1, 3), np.uint8).view(Pixels)
            alive += 1
            most = max(most, alive)
            yield TimedPicture(number / 10, 0.1, pixels)

    assert sum(1 for _ in cut_windows(frames(), 2.0, 0.5)) == 397
    assert most <= 20 + 5 + 2  # a window, and a stride of the one before


def test_curves_keep_the_mean_in_a_bounded_number_of_points() -> None:
    rng, curves = np.random.default_rng(0), Curves(max_points=16)
    shares = rng.dirichlet(np.ones(3), size=4 * 16).astype(np.float32)
    for number, share in enumerate(shares):
        curves.add(Moment(number, number + 1, share))
        assert len(curves._done) <= 16
    starts, ends, points = curves.points()
    assert starts[0] == 0
    assert ends[-1] == len(shares)
    assert (starts[1:] == ends[:-1]).all()
    weights = ends - starts
    np.testing.assert_allclose((points * weights[:, None]).sum(0) / 64, shares.mean(0), atol=1e-6)


def test_the_clock() -> None:
    assert [clock(s) for s in (0, 2.04, 59.96, 3599.96)] == [
        "0:00.0",
        "0:02.0",
        "1:00.0",
        "1:00:00.0",
    ]


def test_a_plot_is_written_or_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"out\.bmp: cannot be drawn; choose \.png or"):
        check_plot(tmp_path / "out.bmp")
    with pytest.raises(ConfigError, match="gone is not a directory"):
        check_plot(tmp_path / "gone" / "out.png")
    curves, classes = Curves(), tuple(f"$class_{number}$" for number in range(12))
    for number in range(30):
        curves.add(Moment(number / 2, number / 2 + 1, np.eye(12, dtype=np.float32)[number % 12]))
    for suffix in ("png", "svg"):
        draw_timeline(tmp_path / f"out.{suffix}", curves, classes, "a $title_1")
    assert (tmp_path / "out.png").read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "out.svg").read_text()  # its comments hold what is drawn
    assert "a $title_1" in text.replace("\\$", "$")
    assert sum(f"class_{number}" in text for number in range(12)) == 8
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(ConfigError, match=r"taken\.png: cannot be written \(Is a directory\)"):
        draw_timeline(tmp_path / "taken.png", curves, classes, "")
