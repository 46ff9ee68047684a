from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient

from pipeline.distributed import free_port
from pipeline.tracking import Tracker, TrackingConfig


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


def test_attempts_of_a_run_share_one_mlflow_run_without_duplicates(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    assert attempt(run_dir, 1, 2, 3, status="KILLED")
    run_id = (run_dir / "mlflow_run_id").read_text().strip()

    assert attempt(run_dir, 2, 3, 4)  # what a resumed attempt logs again

    assert (run_dir / "mlflow_run_id").read_text().strip() == run_id
    assert history(run_dir, run_id) == [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 0.25)]
    run = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}").get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.data.tags["provenance.host"] == "here"
    assert run.data.params == {"lr": "0.1"}


def test_an_absent_server_loses_nothing_and_stops_nobody(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    nobody = f"http://127.0.0.1:{free_port()}"
    assert not attempt(run_dir, 1, 2, uri=nobody)
    assert not (run_dir / "mlflow_run_id").exists()

    assert attempt(run_dir, 1, 2, 3)  # the next attempt reads metrics.jsonl from the start

    run_id = (run_dir / "mlflow_run_id").read_text().strip()
    assert [step for step, _ in history(run_dir, run_id)] == [1, 2, 3]
