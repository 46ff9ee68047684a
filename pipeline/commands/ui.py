"""`vmp ui`: MLflow's web page for the runs of a directory, served to this machine only."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import IO

from pipeline import exits
from pipeline.errors import ConfigError
from pipeline.rundir.paths import TRACKING_STORE
from pipeline.tracking import TrackingConfig, resolve_uri, runs_page

_HOST = "127.0.0.1"
_START_S = 120.0


def serve_ui(runs_dir: Path, port: int, announce: Callable[[str], object]) -> int:
    """Run the MLflow server on the store of `runs_dir` until it is interrupted.

    `announce` receives a line with the address of the list of runs once the server answers.
    Returns the exit status. Raises ConfigError when there is no store yet or the port is taken.
    """
    database = runs_dir / TRACKING_STORE
    if not database.exists():
        raise ConfigError(f"{database}: no run store here; train something, or set --runs")
    _refuse_busy(port)
    uri = resolve_uri(TrackingConfig(), runs_dir)
    with _interruptible(), tempfile.TemporaryFile() as log:
        server = None
        try:
            page = f"http://{_HOST}:{port}/{runs_page(uri)}"
            server = _start(uri, port, log)
            if _await(server, port):
                announce(f"the runs of {runs_dir}: {page}   (Ctrl-C ends)")
                server.wait()
        except KeyboardInterrupt:
            return exits.DONE
        finally:
            if server is not None:
                _stop(server)
        log.seek(0)
        print(log.read().decode(errors="replace"), file=sys.stderr)
        print("error: MLflow's server has ended; its output is above", file=sys.stderr)
        return exits.FAILED


def _refuse_busy(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((_HOST, port))
        except OSError as error:
            raise ConfigError(
                f"--port {port}: cannot be used here ({error.strerror}); choose another"
            ) from error


def _start(uri: str, port: int, log: IO[bytes]) -> subprocess.Popen[bytes]:
    environment = os.environ | {
        "MLFLOW_DISABLE_TELEMETRY": "true",
        # MLflow's job runner would start seven more processes that nothing here uses.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        # The URI may hold a password, and every user of the machine can see arguments.
        "MLFLOW_BACKEND_STORE_URI": uri,
    }
    command = [sys.executable, "-P", "-m", "mlflow", "server", "--workers", "1"]
    command += ["--host", _HOST, "--port", str(port)]
    command += ["--uvicorn-opts", "--log-level warning"]
    # The server gets its own session, so that Ctrl-C reaches only this process, which then stops
    # the server without its tracebacks.
    return subprocess.Popen(
        command, env=environment, stdout=log, stderr=log, start_new_session=True
    )


def _await(server: subprocess.Popen[bytes], port: int) -> bool:
    """Return whether the server answers within two minutes and before it ends."""
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and server.poll() is None:
        try:
            with urllib.request.urlopen(f"http://{_HOST}:{port}/health", timeout=5):
                return True
        except OSError:
            time.sleep(0.2)
    return False


def _stop(server: subprocess.Popen[bytes]) -> None:
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(server.pid, number)
            server.wait(timeout=5)
        except ProcessLookupError:
            return
        except subprocess.TimeoutExpired:
            continue


@contextmanager
def _interruptible() -> Iterator[None]:
    """Handle SIGTERM and a closed terminal as Ctrl-C, so that no server stays behind.

    SIGINT gets a handler too, because a shell starts background jobs with SIGINT ignored.
    """

    def interrupt(_: int, __: FrameType | None) -> None:
        raise KeyboardInterrupt

    ends = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, interrupt) for number in ends}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
