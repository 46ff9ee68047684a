"""`vmp compare`: the figures of a comparison, and what may not be compared."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipeline.commands.compare import run_compare
from pipeline.errors import ConfigError
from pipeline.inference.results import write_results
from tests.pipeline.inference.made import VIEWS, made_results

LABEL = [0] * 20
FIRST = [0] * 10 + [1] * 10  # 10 of 20 are right
SECOND = [1] * 1 + [0] * 16 + [1] * 3  # loses 1, wins 7


def _written(root: Path, name: str, predicted: list[int], **changed: object) -> Path:
    label: Any = changed.pop("label", LABEL)
    write_results(root / name, made_results(label, predicted, **changed))
    return root / name


def test_the_comparison_of_two_evaluations(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    a, b = _written(tmp_path, "a", FIRST), _written(tmp_path, "b", SECOND, weights="other")
    run_compare(a, b, None, [], tmp_path / "found.json")
    found = json.loads((tmp_path / "found.json").read_text())
    assert (found["only_first_correct"], found["only_second_correct"]) == (1, 7)
    assert found["p_value"] == pytest.approx(18 / 256)
    assert found["test"] == "McNemar, exact binomial"
    assert found["top1"] == [0.5, 0.8]
    assert found["difference"] == pytest.approx(0.3)
    low, high = found["difference_interval"]
    assert low < 0.3 < high
    out = capsys.readouterr().out
    assert "B - A      +0.3000, 95 % [" in out
    assert "p          0.07031 (McNemar, exact binomial; 20 videos)" in out
    assert "verdict    no difference that these videos show (p >= 0.05)" in out

    better = _written(tmp_path, "better", [0] * 20)
    run_compare(a, better, None, [], None)
    assert "verdict    B is better (p < 0.05)" in capsys.readouterr().out
    run_compare(better, a, None, [], None)
    assert "verdict    A is better (p < 0.05)" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"data_digest": "e" * 64}, r"they are of other videos \(shards, split val, digest ddddd"),
        ({"views": VIEWS.model_copy(update={"clips": 4})}, r"their views differ \(clips 2 and 4\)"),
        (
            {"views": VIEWS.model_copy(update={"img_size": 64, "crops": 1})},
            r"their views differ \(crops 3 and 1, img_size 32 and 64\)",
        ),
        ({"label": LABEL[:-1]}, "1 videos were read for one and not for the other"),
    ],
)
def test_what_is_not_alike_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    a = _written(tmp_path, "a", FIRST)
    b = _written(tmp_path, "b", SECOND[: len(changed.get("label", LABEL))], **changed)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message) as refused:
        run_compare(a, b, None, [], tmp_path / "found.json")
    assert "\n" not in str(refused.value)
    assert not (tmp_path / "found.json").exists()


def test_the_seed_matters_where_frames_are_shuffled(tmp_path: Path) -> None:
    a = _written(tmp_path, "a", FIRST)
    seeded = VIEWS.model_copy(update={"seed": 5})
    run_compare(a, _written(tmp_path, "b", SECOND, views=seeded), None, [], None)
    one, other = (v.model_copy(update={"shuffle_frames": True}) for v in (VIEWS, seeded))
    a, b = _written(tmp_path, "a", FIRST, views=one), _written(tmp_path, "b", SECOND, views=other)
    with pytest.raises(ConfigError, match=r"views differ \(seed 0 and 5\)"):
        run_compare(a, b, None, [], None)


def test_what_is_no_evaluation_needs_data(tmp_path: Path) -> None:
    a = _written(tmp_path, "a", FIRST)
    with pytest.raises(ConfigError, match=r"nothing: no evaluation .* with --data DATA"):
        run_compare(a, tmp_path / "nothing", None, [], None)
    with pytest.raises(ConfigError, match=r"is an evaluation already; eval\.clips=4 comes too"):
        run_compare(a, a, tmp_path, ["eval.clips=4"], None)
    with pytest.raises(ConfigError, match=r"found\.json: cannot be written: No such file"):
        run_compare(a, a, None, [], tmp_path / "absent/found.json")
