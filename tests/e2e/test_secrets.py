"""A password in tracking.uri reaches the server and nobody else."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from pipeline.config import load_config, read_config
from pipeline.errors import ConfigError
from pipeline.prepare import prepare_run
from pipeline.tracking import Tracker, TrackingConfig, resolve_uri
from tests import runs

PASSWORD = "hunter2hunter2"


class _Server(ThreadingHTTPServer):
    credentials: set[str | None]


class _Refusing(BaseHTTPRequestHandler):
    """Records requests, and answers with an error that quotes the whole request."""

    server: _Server

    def do_GET(self) -> None:
        self.server.credentials.add(self.headers["Authorization"])
        self.send_response(400)
        self.end_headers()
        self.wfile.write(f"http://me:{PASSWORD}@{self.headers['Host']}{self.path}".encode())

    do_POST = do_GET  # noqa: N815

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[_Server]:
    with _Server(("127.0.0.1", 0), _Refusing) as server:
        server.credentials = set()
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture(autouse=True)
def _own_umask_and_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    before = os.umask(0o022)
    yield
    os.umask(before)


@pytest.mark.dist
def test_a_password_reaches_the_server_and_no_file(
    tmp_path: Path, glyph_shards: Path, server: _Server
) -> None:
    uri = f"http://me:{PASSWORD}@127.0.0.1:{server.server_port}"
    own = {"tracking__uri": uri, "tracking__flush_timeout_s": 5, "private": True}
    arguments = runs.overrides(tmp_path, glyph_shards, "x", schedule__max_steps=1, **own)

    output = runs.run("submit", *arguments, "launch.ranks_per_node=2")

    assert server.credentials == {"Basic " + base64.b64encode(f"me:{PASSWORD}".encode()).decode()}
    assert "MLflow at http://***@127.0.0.1" in output
    assert PASSWORD not in output
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"config.yaml", "provenance.json", "COMMITTED"} <= {path.name for path in files}
    assert [path for path in files if PASSWORD.encode() in path.read_bytes()] == []
    assert read_config(tmp_path / "x").tracking.uri == uri.replace(f"me:{PASSWORD}", "***")
    of_the_run = [path for path in (tmp_path / "x").rglob("*") if not path.is_symlink()]
    assert [path for path in of_the_run if path.stat().st_mode & 0o077] == []


def test_a_stored_uri_is_completed_from_the_environment_or_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"https://me:{PASSWORD}@host/x?api_key={PASSWORD}"
    overrides = [f"runs_dir={tmp_path}", f"tracking.uri={uri}"]
    run_dir = prepare_run(load_config("demo", overrides))
    assert os.environ["MLFLOW_TRACKING_URI"] == uri  # for ranks and jobs
    stored = read_config(run_dir)
    assert resolve_uri(stored.tracking, tmp_path) == uri

    for other in (None, "https://elsewhere/"):
        if other is None:
            monkeypatch.delenv("MLFLOW_TRACKING_URI")
        else:
            monkeypatch.setenv("MLFLOW_TRACKING_URI", other)
        with pytest.raises(ConfigError, match="set MLFLOW_TRACKING_URI to the whole") as refused:
            prepare_run(stored)
        assert PASSWORD not in str(refused.value)
        tracker = Tracker(stored.tracking, run_dir, params={}, tags={})  # in a rank: untracked
        assert tracker.close("FINISHED")

    short = TrackingConfig(uri="https://***@host/x")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", PASSWORD)
    assert resolve_uri(short, tmp_path) == "https://host/x"
    assert PASSWORD not in repr(load_config("demo", overrides))


def test_a_run_that_is_not_private_heeds_the_umask_but_lets_nobody_else_write(
    tmp_path: Path,
) -> None:
    os.umask(0)
    run_dir = prepare_run(load_config("demo", [f"runs_dir={tmp_path}"]))
    assert run_dir.stat().st_mode & 0o777 == 0o775
    assert (run_dir / "config.yaml").stat().st_mode & 0o777 == 0o664
    prepare_run(load_config("demo", [f"runs_dir={tmp_path}", "private=true"]))
    assert run_dir.stat().st_mode & 0o777 == 0o700
    assert (run_dir / "config.yaml").stat().st_mode & 0o777 == 0o600
