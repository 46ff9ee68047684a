"""The C++ kernels build once, safely, and leave the process as it was."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch

from model.scan.build_cache import BuildError, cached
from model.scan.native import library
from model.scan.native.build import build_library

pytestmark = pytest.mark.skipif(
    not library.is_available(), reason="no C++ compiler (apt-get install g++)"
)
BUILD = "from model.scan.native.build import build_library; print(build_library())"


def _python(code: str, cache: Path, **kwargs: str) -> subprocess.Popen[str]:
    environment = os.environ | {"VIDEOMAMBAPRO_CACHE": str(cache)} | kwargs
    return subprocess.Popen(
        [sys.executable, "-c", code],
        env=environment,
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_several_processes_build_one_library(tmp_path: Path) -> None:
    processes = [_python(BUILD, tmp_path) for _ in range(3)]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0, 0]
    assert [str(path) for path in tmp_path.glob("*.so")] == list(paths)
    assert not list(tmp_path.glob("*.tmp"))
    assert not list(tmp_path.glob("*.lock"))


def test_files_are_made_in_parallel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEOMAMBAPRO_CACHE", str(tmp_path))

    def make_while_another_is_made(path: Path) -> None:
        path.write_text("first")
        second = threading.Thread(
            target=cached, args=("second", lambda other: other.write_text("second"))
        )
        second.start()
        second.join(timeout=10)
        assert (tmp_path / "second").read_text() == "second"

    assert cached("first", make_while_another_is_made).read_text() == "first"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "second"]


@pytest.mark.slow
def test_a_killed_builder_does_not_block_the_next(tmp_path: Path) -> None:
    lock = tmp_path / f"{build_library().name}.lock"
    holder = _python(
        "import fcntl, time\n"
        f"lock = open({str(lock)!r}, 'w')\n"
        "fcntl.flock(lock, fcntl.LOCK_EX); print('held', flush=True); time.sleep(600)",
        tmp_path,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    waiting = _python(BUILD, tmp_path)
    time.sleep(1.0)
    assert waiting.poll() is None
    holder.send_signal(signal.SIGKILL)
    holder.communicate()
    out, errors = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, errors
    assert Path(out.strip()).exists()


def test_a_failing_compiler_is_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    compiler = tmp_path / "broken-c++"
    compiler.write_text("#!/bin/sh\n[ $1 = --version ] && exit 0\necho no disk >&2\nexit 1\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    monkeypatch.setenv("VIDEOMAMBAPRO_CACHE", str(tmp_path / "cache"))
    build_library.cache_clear()
    with pytest.raises(BuildError, match=r"broken-c\+\+ .* failed: no disk"):
        build_library()
    build_library.cache_clear()
    assert not list((tmp_path / "cache").glob("*.tmp"))


def test_denormals_survive() -> None:
    """Neither loading nor running the kernels may switch the process to flush-to-zero."""
    from model.scan import selective_scan

    library.library()
    ones = torch.ones(2, 33, 9)
    selective_scan(ones, ones, -torch.ones(33, 4), ones[:, :4], ones[:, :4], backend="cpu")
    tiny = torch.full((64,), 1e-40)
    assert (tiny * 1.0 != 0).all()
    assert 1e-310 * 1.0 != 0.0
