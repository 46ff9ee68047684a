"""Files that hang, crash or eat memory cost themselves and nothing else."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from pathlib import Path

import psutil
import pytest

from data_prep.jobs.pool import Caps, ClipPool
from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip, RejectedClip


def _requests(paths: list[Path]) -> list[tuple[str, ClipRequest]]:
    return [(path.name, ClipRequest(str(path), 0.0, None, EncodeSettings())) for path in paths]


def _outcomes(pool: ClipPool[str], paths: list[Path]) -> list[tuple[str, str]]:
    return [
        (name, answer.code if isinstance(answer, RejectedClip) else "ok")
        for name, answer in pool.map(_requests(paths))
    ]


@pytest.fixture
def clips(synthetic: Path) -> list[Path]:
    return sorted(synthetic.glob("train/*.mp4"))[:12]


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A pipe that nobody writes to: opening it never returns."""
    path = tmp_path / "hanging.mp4"
    os.mkfifo(path)
    return path


def test_answers_keep_the_order_of_the_requests(clips: list[Path]) -> None:
    with ClipPool[str](3, Caps()) as pool:
        names = [name for name, _ in pool.map(_requests(clips))]
        assert names == [path.name for path in clips]
        assert list(pool.map([])) == []
        assert len(list(pool.map(_requests(clips[:1])))) == 1


def test_a_hanging_file_is_overdue_and_the_rest_goes_on(clips: list[Path], hanging: Path) -> None:
    paths = [*clips[:3], hanging, *clips[3:], hanging]
    with ClipPool[str](2, Caps(timeout_s=1.5)) as pool:
        outcomes = _outcomes(pool, paths)
    assert [name for name, _ in outcomes] == [path.name for path in paths]
    assert [code for _, code in outcomes] == ["ok"] * 3 + ["timeout"] + ["ok"] * 9 + ["timeout"]


def _kill_children(times: int, done: threading.Event) -> None:
    """Kill the process that waits on the pipe, `times` times."""
    killed: set[int] = set()
    while len(killed) < times and not done.is_set():
        for child in psutil.Process().children():
            is_ours = "data_prep.jobs.child" in child.cmdline()
            if is_ours and child.pid not in killed and child.create_time() < time.time() - 0.7:
                killed.add(child.pid)
                child.send_signal(signal.SIGKILL)
        time.sleep(0.05)


@pytest.mark.parametrize(("kills", "expected"), [(2, "crash"), (1, "timeout")])
def test_a_death_is_forgiven_once(
    hanging: Path, clips: list[Path], kills: int, expected: str
) -> None:
    done = threading.Event()
    killer = threading.Thread(target=_kill_children, args=(kills, done))
    with ClipPool[str](1, Caps(timeout_s=6.0)) as pool:
        killer.start()
        outcomes = _outcomes(pool, [hanging, *clips[:3]])
    done.set()
    killer.join()
    assert [code for _, code in outcomes] == [expected, "ok", "ok", "ok"]


def _png(path: Path, side: int) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(side * (side * 3 + 1)), 1)
    content = chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + content)


def test_memory_is_capped(tmp_path: Path) -> None:
    """12000 x 12000 pixels need 432 MB."""
    _png(tmp_path / "small.png", 64)
    _png(tmp_path / "large.png", 12_000)
    paths = [tmp_path / name for name in ("small.png", "large.png", "small.png")]
    with ClipPool[str](1, Caps(memory_gib=0.2)) as pool:
        assert [code for _, code in _outcomes(pool, paths)] == ["ok", "memory", "ok"]


def test_an_image_is_one_frame(tmp_path: Path) -> None:
    _png(tmp_path / "one.png", 64)
    with ClipPool[str](1, Caps()) as pool:
        ((_, clip),) = pool.map(_requests([tmp_path / "one.png"]))
    assert isinstance(clip, PreparedClip)
    assert (clip.frames, clip.width, clip.keyframes) == (1, 64, (0,))


def test_no_child_outlives_a_killed_supervisor(hanging: Path) -> None:
    program = (
        "import sys\n"
        "from data_prep.video.clip import ClipRequest, EncodeSettings\n"
        "from data_prep.jobs.pool import Caps, ClipPool\n"
        "request = ClipRequest(sys.argv[1], 0.0, None, EncodeSettings())\n"
        "with ClipPool(2, Caps()) as pool:\n"
        "    list(pool.map([(0, request), (1, request)]))\n"
    )
    supervisor = subprocess.Popen([sys.executable, "-c", program, str(hanging)])
    children: list[psutil.Process] = []
    while len(children) < 2:
        children = psutil.Process(supervisor.pid).children()
        time.sleep(0.05)
    time.sleep(1.0)
    supervisor.kill()
    supervisor.wait()
    gone, alive = psutil.wait_procs(children, timeout=10)
    assert (len(gone), alive) == (2, [])
