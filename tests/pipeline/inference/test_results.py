"""What an evaluation writes: figures by hand, one state of the files, and nothing damaged read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image

from pipeline.errors import ConfigError
from pipeline.inference import results as results_module
from pipeline.inference.plots import PICTURES, draw
from pipeline.inference.results import read_results, write_results
from pipeline.inference.statistics import bootstrap_accuracy
from tests.pipeline.inference.made import made_results

LABEL, PREDICTED = [0, 0, 0, 1, 1], [0, 0, 1, 1, 0]


def test_the_figures_of_five_videos() -> None:
    found = made_results(LABEL, PREDICTED).evaluation
    assert (found.num_videos, found.top1, found.top5) == (5, 0.6, 1.0)
    assert found.mean_class_accuracy == pytest.approx((2 / 3 + 1 / 2) / 2)
    assert [c.accuracy for c in found.per_class] == [pytest.approx(2 / 3), 0.5, None]
    assert [c.videos for c in found.per_class] == [3, 2, 0]
    right = np.array([True, True, False, True, False])
    assert found.top1_interval == bootstrap_accuracy(right)
    sure = math.exp(3) / (math.exp(3) + 2)  # of each prediction
    assert found.calibration_error == pytest.approx(sure - 0.6)
    other = 1 / (math.exp(3) + 2)
    assert found.loss == pytest.approx(-(3 * math.log(sure) + 2 * math.log(other)) / 5)
    cells = [(c.label, c.predicted, c.videos) for c in found.confusions]
    assert cells == [("class0", "class1", 1), ("class1", "class0", 1)]


def test_the_most_frequent_confusion_comes_first() -> None:
    found = made_results([0, 1, 1, 2], [1, 2, 2, 2]).evaluation
    cells = [(c.label, c.predicted, c.videos) for c in found.confusions]
    assert cells == [("class1", "class2", 2), ("class0", "class1", 1)]


def test_no_videos_at_all() -> None:
    found = made_results([], []).evaluation
    assert (found.num_videos, found.top1, found.mean_class_accuracy) == (0, 0.0, None)
    assert found.top1_interval == (0.0, 1.0)


def test_a_loss_that_is_not_finite_is_null(tmp_path: Path) -> None:
    infinite = made_results([0], [1], sure=math.inf)
    assert infinite.evaluation.loss is None
    write_results(tmp_path, made_results([0], [1]))
    assert "NaN" not in (tmp_path / "evaluation.json").read_text()


def test_what_is_written_is_read_and_other_readers_read_it(tmp_path: Path) -> None:
    made = made_results(LABEL, PREDICTED)
    write_results(tmp_path / "out", made)
    read = read_results(tmp_path / "out")
    assert read.evaluation.model_copy(update={"table_sha256": ""}) == made.evaluation
    assert read.keys == made.keys
    np.testing.assert_array_equal(read.logits, made.logits)
    np.testing.assert_array_equal(read.predicted, PREDICTED)
    table = pq.read_table(tmp_path / "out/videos.parquet").to_pylist()
    assert [row["correct"] for row in table] == [True, True, False, True, False]
    probabilities = torch.tensor([row["logits"] for row in table]).softmax(1)
    torch.testing.assert_close(probabilities.sum(1), torch.ones(5))
    torch.testing.assert_close(probabilities.amax(1), torch.full((5,), 0.909), atol=1e-3, rtol=0)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "evaluation.json",
        "videos.parquet",
    ]


@pytest.mark.slow
def test_the_pictures_show_something_and_are_the_same_each_time(tmp_path: Path) -> None:
    made = made_results(LABEL, PREDICTED)
    many = made_results(list(range(60)), [0] * 60, num_classes=60)
    for name, results in (("a", made), ("b", made), ("many", many)):
        (tmp_path / name).mkdir()
        draw(tmp_path / name, results)
    for picture in PICTURES:
        assert (tmp_path / "a" / picture).read_bytes() == (tmp_path / "b" / picture).read_bytes()
        assert (tmp_path / "a" / picture).read_bytes() != (tmp_path / "many" / picture).read_bytes()
        with Image.open(tmp_path / "many" / picture) as image:
            assert min(image.size) > 200
            assert sum(count > 0 for count in image.convert("L").histogram()) > 10


def _change_table(out: Path) -> None:
    with (out / "videos.parquet").open("ab") as file:
        file.write(b"x")


def _change_version(out: Path) -> None:
    content = json.loads((out / "evaluation.json").read_text())
    (out / "evaluation.json").write_text(json.dumps(content | {"version": 2}))


def _drop_class(out: Path) -> None:
    content = json.loads((out / "evaluation.json").read_text())
    (out / "evaluation.json").write_text(json.dumps(content | {"classes": ["a", "b"]}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda out: (out / "evaluation.json").unlink(), "not an evaluation .evaluation.json: No"),
        (lambda out: (out / "videos.parquet").unlink(), "not an evaluation .videos.parquet: No"),
        (lambda out: (out / "evaluation.json").write_text("{"), "not an evaluation: content: Inv"),
        (lambda out: (out / "evaluation.json").write_text("[]"), "not an evaluation: content: "),
        (_change_table, "not the table that evaluation.json names"),
        (_change_version, "not an evaluation: version: "),
        (_drop_class, "videos.parquet: cannot be read: cannot reshape"),
    ],
)
def test_a_damaged_evaluation_is_one_line(tmp_path: Path, damage, message: str) -> None:
    write_results(tmp_path, made_results(LABEL, PREDICTED))
    damage(tmp_path)
    with pytest.raises(ConfigError, match=message) as refused:
        read_results(tmp_path)
    assert "\n" not in str(refused.value)
    assert str(tmp_path) in str(refused.value)


def test_a_killed_writer_leaves_no_evaluation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_results(tmp_path, made_results(LABEL, PREDICTED))

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(results_module.durable, "write_json", killed)
    with pytest.raises(KeyboardInterrupt):
        write_results(tmp_path, made_results([0], [1]))
    with pytest.raises(ConfigError, match="not an evaluation"):
        read_results(tmp_path)
