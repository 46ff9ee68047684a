"""`vmp predict` and the predictor behind it, on rendered videos."""

from __future__ import annotations

import csv
import io
import json
import sys
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from rich.console import Console
from rich.progress import Progress as Bar
from rich.progress import TextColumn

from data_prep.video.read import read_pictures, read_timed_pictures, stated_seconds
from model import ModelError, Stream, create_model
from pipeline import predict
from pipeline.commands.predictions import Progress
from pipeline.config import load_config
from pipeline.data.augment import square_crops
from pipeline.data.batch import normalize
from pipeline.errors import ConfigError
from pipeline.inference.exported import Card, write_exported
from pipeline.predict import Predictor
from tests.command_line import Vmp

CLASSES = tuple(f"class{number}" for number in range(5))


def _exported(path: Path, *overrides: str) -> Path:
    config = load_config("demo", ["model.preset=videomambapro-tiny-test", *overrides])
    torch.manual_seed(0)
    net = create_model(config.model)
    with torch.no_grad():
        net.head.weight.normal_()  # so that classes differ visibly
    write_exported(path, net, Card.of(config, CLASSES))
    return path


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return _exported(tmp_path_factory.mktemp("both") / "both.safetensors")


@pytest.fixture(scope="module")
def forward(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forward")
    return _exported(folder / "forward.safetensors", "model.direction=forward", "eval.crops=3")


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 frames of 48 x 32 pixels at 8 frames per second: 5 s."""
    path = tmp_path_factory.mktemp("long") / "long [x].mp4"
    rng = np.random.default_rng(0)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=8, options={"crf": "12"})
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for _ in range(40):
            image = np.kron(rng.integers(0, 255, (4, 6, 3), np.uint8), np.ones((8, 8, 1), np.uint8))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def test_times_are_those_of_the_file(long: Path) -> None:
    pictures = list(read_timed_pictures(str(long)))
    assert [picture.time_s for picture in pictures] == [number / 8 for number in range(40)]
    assert {picture.shown_s for picture in pictures} == {0.125}
    assert stated_seconds(str(long)) == pytest.approx(5.0)
    for picture, pixels in zip(pictures, read_pictures(str(long)), strict=True):
        assert (picture.pixels == pixels).all()


def test_a_window_is_predicted_like_a_file_of_its_frames(both: Path, long: Path) -> None:
    predictor = Predictor.load(both)
    moments = list(predictor.windows(long, window_s=2, stride_s=1.5))
    assert [moment[:2] for moment in moments] == [(0, 2), (1.5, 3.5), (3, 5)]
    pictures = list(read_pictures(str(long)))
    for moment in moments:
        own = pictures[int(moment.start_s * 8) : int(moment.end_s * 8)]
        expected = predictor._answer(own, predictor._wanted(len(own)))
        assert (moment.probabilities == expected.probabilities).all()
    (whole,) = predictor.windows(long, window_s=60)
    assert (whole.probabilities == predictor.whole(long).probabilities).all()
    with pytest.raises(ConfigError, match=r"window of 1 s every 0 s: give 0\.01 s or more"):
        next(predictor.windows(long, 1, 0))


def test_a_long_video_is_read_twice_and_not_held(
    both: Path, long: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    predictor = Predictor.load(both)
    whole = predictor.whole(long).probabilities
    monkeypatch.setattr(predict, "_HELD", 10)
    held, wanted = predict.read_chosen(long, predictor._wanted)
    assert len(held) == wanted.size == 4
    assert (predictor.whole(long).probabilities == whole).all()


def test_a_stream_answers_after_every_frame(forward: Path, long: Path) -> None:
    predictor = Predictor.load(forward)
    moments = list(predictor.stream(long, carry=True))
    assert [moment.start_s for moment in moments] == [number / 8 for number in range(40)]
    assert all(moment.end_s - moment.start_s == 0.125 for moment in moments)
    data, size = predictor.config.data, predictor.config.model.img_size
    views = square_crops(np.stack(list(read_pictures(str(long)))), size, 3)
    stream = Stream(predictor.model, batch=3)
    logits = stream.push(normalize(views[None], data.mean, data.std))
    expected = logits.softmax(-1).mean(0).numpy()
    np.testing.assert_array_equal([m.probabilities for m in moments], expected)
    recent = list(predictor.stream(long))  # from four frames at most, as in training
    assert (recent[3].probabilities == expected[3]).all()
    assert not np.allclose(recent[20].probabilities, expected[20])
    assert len(list(predictor.stream(long, every=3))) == 14


def test_a_stream_needs_a_forward_model_and_a_frame_rate(
    both: Path, long: Path, tmp_path: Path
) -> None:
    with pytest.raises(ModelError, match=r"trained with model\.direction=forward"):
        next(Predictor.load(both).stream(long))
    sparse = _exported(tmp_path / "s.pth", "model.direction=forward", "data.sampling=tsn")
    with pytest.raises(ConfigError, match=r"data\.sampling=tsn\).*give --every N"):
        next(Predictor.load(sparse).stream(long))
    assert len(list(Predictor.load(sparse).stream(long, every=8))) == 5


def test_the_timeline_as_text_json_and_csv(both: Path, long: Path, vmp: Vmp) -> None:
    options = (both, long, "--window", 2, "--stride", 1.5, "--top", 2)
    moments = list(Predictor.load(both).windows(long, 2, 1.5))
    status, out, err = vmp("predict", *options)
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head == f"{long}:"
    assert len(lines) == 3
    assert lines[1].strip().startswith("0:01.5 -    0:03.5  class")

    status, out, _ = vmp("predict", *options, "--json")
    rows = [json.loads(line) for line in out.splitlines()]
    assert [(row["video"], row["start_s"], row["end_s"]) for row in rows] == [
        (str(long), *moment[:2]) for moment in moments
    ]
    for row, moment in zip(rows, moments, strict=True):
        best = int(moment.probabilities.argmax())
        assert len(row["classes"]) == 2
        assert row["classes"][0]["class"] == CLASSES[best]
        assert row["classes"][0]["probability"] == pytest.approx(
            moment.probabilities[best], abs=1e-6
        )

    status, out, _ = vmp("predict", *options, "--csv")
    table = list(csv.DictReader(io.StringIO(out)))
    assert [(row["start_s"], row["rank"]) for row in table] == [
        (start, rank) for start in ("0.0", "1.5", "3.0") for rank in ("1", "2")
    ]
    assert table[0]["class"] == rows[0]["classes"][0]["class"]
    assert float(table[1]["probability"]) == rows[0]["classes"][1]["probability"]


def test_a_stream_is_shown_in_stretches_and_plotted(
    forward: Path, long: Path, vmp: Vmp, tmp_path: Path
) -> None:
    plot = tmp_path / "out.png"
    status, out, err = vmp("predict", forward, long, "--stream", "--plot", plot)
    assert (status, err) == (0, "")
    head, *lines = out.splitlines()
    assert head == f"{long}:"
    moments = list(Predictor.load(forward).stream(long))
    best = [int(moment.probabilities.argmax()) for moment in moments]
    changes = 1 + sum(a != b for a, b in pairwise(best))
    assert len(lines) == changes
    assert "step" in lines[0]
    assert plot.stat().st_size > 10_000
    status, out, _ = vmp("predict", forward, long, "--stream", "--carry", "--every", 2, "--json")
    assert len(out.splitlines()) == 20


def test_folders_patterns_and_urls(both: Path, long: Path, vmp: Vmp, tmp_path: Path) -> None:
    folder = tmp_path / "clips" / "deep"
    folder.mkdir(parents=True)
    for name in ("b.mp4", "a.MP4"):
        (folder / name).write_bytes(long.read_bytes())
    (folder / "notes.txt").write_text("no video")
    listed = [str(folder / name) for name in ("a.MP4", "b.mp4")]

    def seen(*named: object) -> list[str]:
        status, out, _ = vmp("predict", both, *named, "--json", "--top", 1)
        assert status == 0
        return [json.loads(line)["video"] for line in out.splitlines()]

    assert seen(tmp_path / "clips") == listed
    assert seen(tmp_path / "clips" / "*" / "*.mp4", long) == [listed[1], str(long)]
    urls = [f"file://{path}" for path in listed]
    assert seen(f"file://{tmp_path}/clips") == urls
    assert seen(f"file://{folder}/*.mp4", urls[0]) == [urls[1], urls[0]]


def test_bad_input_is_one_line_each_and_the_rest_is_predicted(
    both: Path, forward: Path, long: Path, vmp: Vmp, tmp_path: Path
) -> None:
    (tmp_path / "empty").mkdir()
    damaged = tmp_path / "damaged.mp4"
    damaged.write_bytes(long.read_bytes()[:-3000])
    named = [tmp_path / "empty", tmp_path / "*.avi", "file:///gone/x.mp4", "nope://x", damaged]
    status, out, err = vmp("predict", both, *named, tmp_path / "gone.mp4", long)
    assert status == 2
    assert [line.partition(": ")[0] for line in out.splitlines()] == [str(long)]
    errors = err.splitlines()
    assert len(errors) == 6
    assert errors[0] == f"error: {tmp_path / 'empty'}: no video is there"
    assert errors[1] == f"error: {tmp_path / '*.avi'}: no video is there"
    assert errors[2].startswith("error: nope://x: cannot be read: ")
    assert errors[3].startswith("error: file:///gone/x.mp4: cannot be read: ")
    assert errors[4].startswith(f"error: {damaged}: cannot be used: ")
    assert errors[5].startswith(f"error: {tmp_path / 'gone.mp4'}: cannot be used: missing")

    for options, message in [
        (("--stream", "--window", 1), "--stream and --window: choose one"),
        (("--stride", 1), "--stride: is of windows"),
        (("--every", 2), "--every: is of a stream"),
        (("--carry",), "--carry: is of a stream"),
        (("--plot", tmp_path / "a.png"), "--plot: draws a timeline"),
        (("--stream", "--features", "a.parquet"), "--features: are of whole videos"),
        (("--stream", "--plot", "a.gif"), r"a.gif: cannot be drawn"),
        (("--json", "--csv"), "--json and --csv: choose one"),
        (("--stream", "--plot", tmp_path / "a.png", long), "--plot: draws one video, and 2 are"),
        (("--stream",), "error: a stream needs a model that was trained with"),
    ]:
        status, out, err = vmp("predict", both, long, *options)
        assert (status, err.count("\n")) == (2, 1), options
        assert message in err
    assert not (tmp_path / "a.png").exists()


def test_what_precedes_damage_is_shown(forward: Path, long: Path, vmp: Vmp, tmp_path: Path) -> None:
    damaged = tmp_path / "damaged.mkv"
    with av.open(str(long)) as source, av.open(str(damaged), "w") as target:
        stream = target.add_stream_from_template(source.streams.video[0])
        for number, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.dts is not None:
                if number == 30:
                    packet.update(bytes(len(bytes(packet))))
                packet.stream = stream
                target.mux(packet)
    status, out, err = vmp("predict", forward, damaged, "--stream", "--json")
    assert status == 2
    assert err.startswith(f"error: {damaged}: cannot be used: corrupt")
    assert 20 <= len(out.splitlines()) < 40


def test_features_are_what_the_head_reads(both: Path, long: Path, vmp: Vmp, tmp_path: Path) -> None:
    predictor, out = Predictor.load(both), tmp_path / "out.parquet"
    assert vmp("predict", both, long, tmp_path / "gone.mp4", "--features", out)[0] == 2
    (row,) = pq.read_table(out).to_pylist()
    assert (row["video"], row["start_s"], row["end_s"]) == (str(long), None, None)
    features = torch.tensor([row["features"]])
    shares = predictor.model.head(features).softmax(-1)[0].detach().numpy()  # one view
    np.testing.assert_allclose(shares, predictor.whole(long).probabilities, atol=1e-6)

    assert vmp("predict", both, long, "--window", 2, "--features", out)[0] == 0
    table = pq.read_table(out).to_pylist()
    assert [(row["start_s"], row["end_s"]) for row in table] == [(0, 2), (1, 3), (2, 4), (3, 5)]
    assert [path.name for path in tmp_path.iterdir()] == ["out.parquet"]

    nowhere = tmp_path / "gone" / "out.parquet"
    status, _, err = vmp("predict", both, long, "--features", nowhere)
    assert (status, err.count("\n")) == (2, 1)
    assert err.startswith(f"error: {nowhere}: cannot be written (")


def test_a_line_of_the_result_never_joins_that_of_the_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    monkeypatch.setenv("TERM", "xterm")
    console = Console(file=screen, force_terminal=True)
    quiet = {"redirect_stdout": False, "redirect_stderr": False}
    with Bar(TextColumn("{task.fields[at]}"), console=console, transient=True, **quiet) as bar:
        bar.add_task("", at="", total=90.0)
        progress = Progress(bar, 90.0)
        progress.update(60.5)
        bar.refresh()
        progress.say("result")
        progress.update(61)
    shown = screen.getvalue()
    assert "1:00.5 of 1:30.0" in shown
    before, _, after = shown.partition("result")
    assert before.endswith(("\n", "\x1b[2K"))  # on a line of its own, or that of the erased bar
    assert after.startswith("\n")
