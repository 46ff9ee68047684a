"""Predictions for many videos, printed as text for people or as JSON or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from data_prep.video.read import stated_seconds
from pipeline import exits
from pipeline.data.errors import DataError
from pipeline.errors import ConfigError
from pipeline.inference.plot import check_plot, clock, draw_timeline
from pipeline.inference.sources import as_local_file, find_videos
from pipeline.inference.timeline import Curves, Moment
from pipeline.predict import Predictor, ranked
from pipeline.terminal import one_line, say

Output = Literal["text", "json", "csv"]
Say = Callable[[float], None]
_COLUMNS = ("video", "start_s", "end_s", "rank", "class", "probability")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `vmp predict`."""

    top: int = 5
    window_s: float | None = None
    stride_s: float | None = None
    stream: bool = False
    every: int | None = None
    output: Output = "text"
    plot: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for options that do not go together."""
        if self.stream and self.window_s is not None:
            raise ConfigError("--stream and --window: choose one")
        if self.stride_s is not None and self.window_s is None:
            raise ConfigError("--stride: is of windows; give --window SECONDS too")
        if self.every is not None and not self.stream:
            raise ConfigError("--every: is of a stream; give --stream too")
        if self.plot is not None:
            if not self.is_timeline:
                raise ConfigError("--plot: draws a timeline; give --window SECONDS or --stream")
            check_plot(self.plot)

    @property
    def is_timeline(self) -> bool:
        return self.stream or self.window_s is not None


def predict_videos(checkpoint: Path, named: list[str], request: Request, *, raw: bool) -> int:
    """Classify all videos and return the exit status: that of bad input if one was unreadable."""
    status = exits.DONE
    videos: list[str] = []
    for each in named:
        try:
            videos += find_videos(each)
        except DataError as error:
            status = _complain(error)
    if request.plot is not None and len(videos) > 1:
        raise ConfigError(f"--plot: draws one video, and {len(videos)} are named")
    if not videos:
        return status
    predictor = Predictor.load(checkpoint, raw=raw)
    writer = _WRITERS[request.output](predictor.classes, request)
    for video in videos:
        try:
            with as_local_file(video) as path, _progress(video, path, videos) as progress:
                if request.is_timeline:
                    _predict_timeline(predictor, video, path, request, writer, progress)
                else:
                    writer.whole(video, predictor.probabilities(path))
        except DataError as error:
            # What the temporary copy of a URL is called says nothing to the user.
            status = _complain(DataError(str(error).replace(str(path), video)))
    return status


def _predict_timeline(
    predictor: Predictor, video: str, path: Path, request: Request, writer: Writer, progress: Say
) -> None:
    if request.window_s is not None:
        moments = predictor.windows(path, request.window_s, request.stride_s)
    else:
        moments = predictor.stream(path, request.every)
    curves = None if request.plot is None else Curves()
    writer.begin(video)
    try:
        for moment in moments:
            writer.moment(video, moment)
            progress(moment.end_s)
            if curves is not None:
                curves.add(moment)
    finally:  # what came before a damaged frame is shown
        writer.end()
    if curves is not None and request.plot is not None:
        draw_timeline(request.plot, curves, predictor.classes, one_line(Path(video).name))


def _complain(error: DataError) -> int:
    say(f"error: {one_line(str(error))}", err=True)
    return exits.BAD_INPUT


@contextmanager
def _progress(video: str, path: Path, videos: list[str]) -> Iterator[Say]:
    """Draw, on a terminal, how far into which video the block is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield lambda seconds: None
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"))
    number = f"{videos.index(video) + 1}/{len(videos)} " if len(videos) > 1 else ""
    # Text that goes to a pipe must not be drawn above the bar instead.
    redirect = sys.stdout.isatty()
    with Progress(*columns, console=console, transient=True, redirect_stdout=redirect) as bar:
        total = stated_seconds(str(path))
        name = one_line(Path(video).name).replace("[", r"\[")
        task = bar.add_task(number + name, total=total, at="")
        of = "" if total is None else f" of {clock(total)}"
        yield lambda seconds: bar.update(task, completed=seconds, at=clock(seconds) + of)


class _Span(NamedTuple):
    """Neighbouring moments of a stream that have the same most probable class."""

    start_s: float
    end_s: float
    best: int
    share: float
    """Sum over the moments."""
    moments: int

    def followed_by(self, moment: Moment) -> _Span | None:
        best = int(moment.probabilities.argmax())
        if best != self.best:
            return None
        share = self.share + float(moment.probabilities[best])
        return _Span(self.start_s, moment.end_s, best, share, self.moments + 1)


class Writer:
    """Prints results as text, each as soon as it is there."""

    def __init__(self, classes: tuple[str, ...], request: Request) -> None:
        self.classes = classes
        self.request = request
        self._span: _Span | None = None

    def whole(self, video: str, shares: NDArray[np.float32]) -> None:
        say(one_line(f"{video}: {self._top(shares)}"))

    def begin(self, video: str) -> None:
        say(one_line(f"{video}:"))

    def moment(self, video: str, moment: Moment) -> None:
        if not self.request.stream:
            self._line(moment.start_s, moment.end_s, self._top(moment.probabilities))
            return
        # A line for every frame would be too much to read.
        longer = None if self._span is None else self._span.followed_by(moment)
        if longer is None:
            self.end()
            best = int(moment.probabilities.argmax())
            longer = _Span(*moment[:2], best, float(moment.probabilities[best]), 1)
        self._span = longer

    def end(self) -> None:
        if self._span is not None:
            start, end, best, share, moments = self._span
            times = f"{moments} steps" if moments > 1 else "1 step"
            self._line(start, end, f"{self.classes[best]} {share / moments:.3f} ({times})")
            self._span = None

    def _top(self, shares: NDArray[np.float32]) -> str:
        best = ranked(self.classes, shares)[: self.request.top]
        return ", ".join(f"{label} {share:.3f}" for label, share in best)

    def _line(self, start_s: float, end_s: float, text: str) -> None:
        say(one_line(f"  {clock(start_s):>9} - {clock(end_s):>9}  {text}"))


class JsonWriter(Writer):
    """Prints one JSON object per line: a video, or a moment of one."""

    def whole(self, video: str, shares: NDArray[np.float32]) -> None:
        self._object({"video": video}, shares)

    def begin(self, video: str) -> None:
        pass

    def moment(self, video: str, moment: Moment) -> None:
        times = {"start_s": round(moment.start_s, 3), "end_s": round(moment.end_s, 3)}
        self._object({"video": video, **times}, moment.probabilities)

    def _object(self, head: dict[str, object], shares: NDArray[np.float32]) -> None:
        best = ranked(self.classes, shares)[: self.request.top]
        listed = [{"class": label, "probability": round(share, 6)} for label, share in best]
        # ASCII alone: no character of a name can reach the terminal as such.
        say(json.dumps(head | {"classes": listed}))


class CsvWriter(JsonWriter):
    """Prints one row per class that is shown; the times are empty for a whole video."""

    def __init__(self, classes: tuple[str, ...], request: Request) -> None:
        super().__init__(classes, request)
        self._row(_COLUMNS)

    def _object(self, head: dict[str, object], shares: NDArray[np.float32]) -> None:
        times = [head.get("start_s", ""), head.get("end_s", "")]
        best = ranked(self.classes, shares)[: self.request.top]
        for rank, (label, share) in enumerate(best, start=1):
            self._row([head["video"], *times, rank, label, round(share, 6)])

    def _row(self, cells: Iterable[object]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="").writerow(cells)
        say(text.getvalue())


_WRITERS: dict[Output, type[Writer]] = {"text": Writer, "json": JsonWriter, "csv": CsvWriter}
