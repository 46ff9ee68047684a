"""`vmp ui` with the real server."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import pytest

from pipeline.commands.ui import serve_ui
from pipeline.errors import ConfigError
from pipeline.tracking import Tracker, TrackingConfig
from pipeline.training.distributed import free_port


@pytest.fixture(scope="module")
def runs_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store with one run."""
    runs_dir = tmp_path_factory.mktemp("runs")
    (runs_dir / "one").mkdir()
    config = TrackingConfig(flush_timeout_s=600)  # the migrations of a fresh store
    tracker = Tracker(config, runs_dir / "one", params={}, tags={})
    tracker.log_rows([{"step": 1, "kind": "eval", "time": 1000.0, "top1": 0.5}])
    assert tracker.close("FINISHED")
    return runs_dir


@pytest.mark.slow
def test_it_shows_the_runs_with_their_metrics_and_says_nothing_else(runs_dir: Path) -> None:
    port = free_port()
    ui = subprocess.Popen(
        [sys.executable, "-m", "pipeline.cli", "ui", "--runs", runs_dir, "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert ui.stdout is not None
        line = ui.stdout.readline()
        found = re.search(
            rf"http://127\.0\.0\.1:{port}/#/experiments/(\d+)/runs\?"
            r"workflowType=machine_learning&viewStateShareKey=(\w+) ",
            line,
        )
        assert found, line + (ui.stderr.read() if ui.stderr else "")
        api = (
            f"http://127.0.0.1:{port}/ajax-api/2.0/mlflow/experiments/get?experiment_id={found[1]}"
        )
        with urllib.request.urlopen(api, timeout=300) as answer:
            tags = json.load(answer)["experiment"]["tags"]
    finally:
        ui.send_signal(signal.SIGINT)
        out, err = ui.communicate(timeout=300)
    view = next(t["value"] for t in tags if t["key"] == f"mlflow.sharedViewState.{found[2]}")
    assert "metrics.`eval/top1`" in json.loads(view)["selectedColumns"]
    assert (ui.returncode, out, err) == (0, "", "")
    with socket.socket() as probe:  # the server is gone with its port
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))


def test_a_port_in_use_is_refused_before_anything_starts(runs_dir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"--port {port}: cannot be used here"):
            serve_ui(runs_dir, port, print)


def test_a_directory_without_runs_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"mlflow\.db: no run store here"):
        serve_ui(tmp_path, free_port(), print)
