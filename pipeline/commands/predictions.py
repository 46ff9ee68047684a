"""Predictions for many videos, printed as text for people or as JSON or CSV for programs."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, TaskID, TextColumn
from rich.progress import Progress as Bar

from data_prep.video.read import stated_seconds
from pipeline import exits
from pipeline.data.errors import DataError
from pipeline.errors import ConfigError
from pipeline.inference.features import FeatureFile
from pipeline.inference.sources import as_local_file, find_videos
from pipeline.inference.timeline import Curves, Moment
from pipeline.inference.timeline_plot import check_plot, clock, draw_timeline
from pipeline.predict import Predictor, ranked
from pipeline.terminal import one_line, say

Output = Literal["text", "json", "csv"]
_COLUMNS = ("video", "start_s", "end_s", "rank", "class", "probability")


@dataclass(frozen=True, kw_only=True)
class Request:
    """The options of `vmp predict`."""

    top: int = 5
    window_s: float | None = None
    stride_s: float | None = None
    stream: bool = False
    every: int | None = None
    carry: bool = False
    output: Output = "text"
    plot: Path | None = None
    features: Path | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for options that do not go together."""
        if self.stream and self.window_s is not None:
            raise ConfigError("--stream and --window: choose one")
        if self.stride_s is not None and self.window_s is None:
            raise ConfigError("--stride: is of windows; give --window SECONDS too")
        if self.every is not None and not self.stream:
            raise ConfigError("--every: is of a stream; give --stream too")
        if self.carry and not self.stream:
            raise ConfigError("--carry: is of a stream; give --stream too")
        if self.stream and self.features is not None:
            raise ConfigError("--features: are of whole videos and of windows, not of a stream")
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
    with ExitStack() as stack:
        features = None
        if request.features is not None:
            features = FeatureFile(request.features, predictor.config.model.embed_dim)
            stack.enter_context(features)
        run = _Run(
            predictor, request, _WRITERS[request.output](predictor.classes, request), features
        )
        for video in videos:
            try:
                with as_local_file(video) as path, _progress(video, path, videos) as progress:
                    run.predict(video, path, progress)
            except DataError as error:
                status = _complain(error)
    return status


class _Run(NamedTuple):
    """Where the answers of all videos go."""

    predictor: Predictor
    request: Request
    writer: Writer
    features: FeatureFile | None

    def predict(self, video: str, path: Path, progress: Progress) -> None:
        self.writer.say = progress.say
        if self.request.is_timeline:
            self._timeline(video, path, progress)
            return
        shares, features = self.predictor.whole(path)
        self.writer.whole(video, shares)
        if self.features is not None:
            self.features.add(video, features)

    def _timeline(self, video: str, path: Path, progress: Progress) -> None:
        request, curves = self.request, None if self.request.plot is None else Curves()
        if request.window_s is not None:
            moments = self.predictor.windows(path, request.window_s, request.stride_s)
        else:
            moments = self.predictor.stream(path, request.every, carry=request.carry)
        self.writer.begin(video)
        try:
            for moment in moments:
                self.writer.moment(video, moment)
                progress.update(moment.end_s)
                if curves is not None:
                    curves.add(moment)
                if self.features is not None and moment.features is not None:
                    self.features.add(video, moment.features, moment[:2])
        finally:  # what came before a damaged frame is shown
            self.writer.end()
        if curves is not None and request.plot is not None:
            title = one_line(Path(video).name)
            draw_timeline(request.plot, curves, self.predictor.classes, title)


def _complain(error: DataError) -> int:
    say(f"error: {one_line(str(error))}", err=True)
    return exits.BAD_INPUT


class Progress:
    """How far into a video the work is, on a terminal; elsewhere nothing is drawn."""

    def __init__(self, bar: Bar | None = None, seconds: float | None = None) -> None:
        self._bar = bar
        self._of = "" if seconds is None else f" of {clock(seconds)}"

    def update(self, seconds: float) -> None:
        if self._bar is not None:
            self._bar.update(TaskID(0), completed=seconds, at=clock(seconds) + self._of)

    def say(self, text: str) -> None:
        """Print a line of the result, which must not join the line of the bar."""
        if self._bar is None or not sys.stdout.isatty():
            say(text)
            return
        self._bar.stop()
        say(text)
        self._bar.start()


@contextmanager
def _progress(video: str, path: Path, videos: list[str]) -> Iterator[Progress]:
    """Draw, on a terminal, how far into which video the block is."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield Progress()
        return
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.fields[at]}"))
    seconds = stated_seconds(str(path))
    number = f"{videos.index(video) + 1}/{len(videos)} " if len(videos) > 1 else ""
    name = one_line(Path(video).name).replace("[", r"\[")
    # What is printed does not pass the console: a pipe gets it whatever the terminal shows.
    with Bar(
        *columns, console=console, transient=True, redirect_stdout=False, redirect_stderr=False
    ) as bar:
        bar.add_task(number + name, total=seconds, at="")
        yield Progress(bar, seconds)


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
        self.say: Callable[[str], None] = say
        self._span: _Span | None = None

    def whole(self, video: str, shares: NDArray[np.float32]) -> None:
        self.say(one_line(f"{video}: {self._top(shares)}"))

    def begin(self, video: str) -> None:
        self.say(one_line(f"{video}:"))

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
        self.say(one_line(f"  {clock(start_s):>9} - {clock(end_s):>9}  {text}"))


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
        self.say(json.dumps(head | {"classes": listed}))


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
        self.say(text.getvalue())


_WRITERS: dict[Output, type[Writer]] = {"text": Writer, "json": JsonWriter, "csv": CsvWriter}
