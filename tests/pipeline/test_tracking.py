from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from pipeline.rundir.paths import TRACKING_PENDING_FILE as PENDING_FILE
from pipeline.tracking import DatasetUse, Tracker, TrackingConfig
from pipeline.training.distributed import free_port


@pytest.fixture(scope="module")
def empty_store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh database, made once because its migrations take seconds."""
    database = tmp_path_factory.mktemp("store") / "mlflow.db"
    MlflowClient(f"sqlite:///{database}").search_experiments()
    return database


@pytest.fixture
def run_dir(tmp_path: Path, empty_store: Path) -> Path:
    shutil.copy(empty_store, tmp_path / "mlflow.db")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


def rows(*steps: int) -> list[dict[str, object]]:
    return [{"step": s, "kind": "train", "time": 1000.0 + s, "loss": 1.0 / s} for s in steps]


def history(run_dir: Path, run_id: str) -> list[tuple[int, float]]:
    client = MlflowClient(f"sqlite:///{run_dir.parent / 'mlflow.db'}")
    return [(m.step, m.value) for m in client.get_metric_history(run_id, "train/loss")]


def attempt(run_dir: Path, *steps: int, status: str = "FINISHED", uri: str | None = None) -> bool:
    config = TrackingConfig(uri=uri, flush_timeout_s=60 if uri is None else 3)
    tracker = Tracker(config, run_dir, params={"lr": 0.1}, tags={"provenance.host": "here"})
    tracker.log_rows(rows(*steps))
    return tracker.close(status)


def test_attempts_of_a_run_share_one_mlflow_run_without_duplicates(
    tmp_path: Path, run_dir: Path
) -> None:
    assert attempt(run_dir, 1, 2, 3, status="KILLED")
    run_id = (run_dir / "mlflow_run_id").read_text().strip()

    assert attempt(run_dir, 2, 3, 4)  # what a resumed attempt logs again

    assert (run_dir / "mlflow_run_id").read_text().strip() == run_id
    assert history(run_dir, run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["provenance.host"] == "here"
    assert run.data.params == {"lr": "0.1"}


@pytest.mark.slow
def test_an_absent_server_loses_nothing_and_stops_nobody(run_dir: Path) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    assert not attempt(run_dir, 1, 2, uri=nobody)
    assert not (run_dir / "mlflow_run_id").exists()
    assert (run_dir / PENDING_FILE).exists()

    assert attempt(run_dir, 1, 2, 3)  # the next attempt reads metrics.jsonl from the start
    assert not (run_dir / PENDING_FILE).exists()

    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    assert [step for step, _ in history(run_dir, run_id)] == [1, 2, 3]


def test_mlflows_own_columns_are_filled_once(tmp_path: Path, run_dir: Path) -> None:
    tags = {"mlflow.source.name": "vmp train", "mlflow.user": "ada"}
    uses = [
        DatasetUse("training", "own", "ab" * 32, "/s"),
        DatasetUse("validation", "own", "c", "/s"),
    ]
    for _ in range(2):  # the second attempt finds all there
        tracker = Tracker(TrackingConfig(), run_dir, params={}, tags=tags, datasets=uses)
        tracker.log_model("mine", 30)
        assert tracker.close("FINISHED")

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run((run_dir / "mlflow_run_id").read_text().strip())
    assert tags.items() <= run.data.tags.items()
    shown = [
        (use.tags[0].value, use.dataset.name, use.dataset.digest)
        for use in run.inputs.dataset_inputs
    ]
    assert sorted(shown) == [("training", "own", "ab" * 18), ("validation", "own", "c")]
    (model,) = run.outputs.model_outputs
    assert model.step == 30
    assert client.get_logged_model(model.model_id).name == "mine"


def test_an_artifact_that_cannot_be_stored_is_left_out_and_the_rows_go_on(
    tmp_path: Path, run_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    MlflowClient(uri).create_experiment("videomambapro", "file:///proc/nowhere")
    (run_dir / "config.yaml").write_text("x")
    tracker = Tracker(TrackingConfig(uri=uri), run_dir, params={}, tags={})
    tracker.log_artifact(run_dir / "config.yaml")
    tracker.log_rows(rows(1, 2))

    assert tracker.close("FINISHED")

    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    assert [step for step, _ in history(run_dir, run_id)] == [1, 2]
    assert MlflowClient(uri).get_run(run_id).info.status == "FINISHED"
    (warning,) = caplog.messages
    assert "does not take the artifact" in warning


@pytest.mark.parametrize("lost", ["deadbeef" * 4, ""])
def test_a_run_that_the_store_has_lost_is_made_again(
    tmp_path: Path, run_dir: Path, lost: str
) -> None:
    (run_dir / "mlflow_run_id").write_text(lost)

    assert attempt(run_dir, 1, 2)

    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    assert [step for step, _ in history(run_dir, run_id)] == [1, 2]
    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(run_id)
    assert run.data.params == {"lr": "0.1"}


def test_parameters_that_were_refused_once_come_with_the_next_try(
    tmp_path: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_batch = MlflowClient.log_batch
    calls: list[str] = []

    def refuse_once(self: MlflowClient, run_id: str, **content: object) -> None:
        calls.append(run_id)
        if len(calls) == 1:
            raise ConnectionError("away")
        log_batch(self, run_id, **content)

    monkeypatch.setattr(MlflowClient, "log_batch", refuse_once)

    assert attempt(run_dir, 1)

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    experiment = client.get_experiment_by_name("videomambapro")
    assert experiment is not None
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.data.params == {"lr": "0.1"}
    assert [step for step, _ in history(run_dir, run.info.run_id)] == [1]
