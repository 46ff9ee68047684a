"""Files that hang, crash or eat memory are lost, and nothing else is."""

from __future__ import annotations

import os
import resource
import signal
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from data_prep.errors import MachineTrouble
from data_prep.jobs import child
from data_prep.jobs.pool import Caps, ClipPool
from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip, RejectedClip


def _requests(paths: list[Path]) -> list[tuple[str, ClipRequest]]:
    return [(path.name, ClipRequest(str(path), 0.0, None, EncodeSettings())) for path in paths]


def _outcomes(pool: ClipPool[str], paths: list[Path]) -> list[tuple[str, str]]:
    return [
        (name, answer.code if isinstance(answer, RejectedClip) else "ok")
        for name, answer in pool.map(_requests(paths))
    ]


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("data_prep.jobs.pool._PAUSES_S", (0.0, 0.0))


@pytest.fixture
def clips(synthetic: Path) -> list[Path]:
    return sorted(synthetic.glob("train/*.mp4"))[:12]


@pytest.fixture
def hanging(tmp_path: Path) -> Path:
    """A pipe that nobody writes to: opening it never returns, and takes no processor time."""
    path = tmp_path / "hanging.mp4"
    os.mkfifo(path)
    return path


def test_answers_keep_the_order_of_the_requests(clips: list[Path]) -> None:
    with ClipPool[str](3, Caps()) as pool:
        names = [name for name, _ in pool.map(_requests(clips))]
        assert names == [path.name for path in clips]
        assert list(pool.map([])) == []
        assert len(list(pool.map(_requests(clips[:1])))) == 1


def test_a_costly_file_is_overdue_and_the_rest_goes_on(clips: list[Path], costly: Path) -> None:
    paths = [*clips[:3], costly, *clips[3:], costly]
    with ClipPool[str](2, Caps(timeout_s=0.5)) as pool:
        answers = list(pool.map(_requests(paths)))
    assert [name for name, _ in answers] == [path.name for path in paths]
    codes = [answer.code if isinstance(answer, RejectedClip) else "ok" for _, answer in answers]
    assert codes == ["ok"] * 3 + ["timeout"] + ["ok"] * 9 + ["timeout"]
    assert isinstance(answers[-1][1], RejectedClip)
    assert answers[-1][1].detail == "over 0.5 s of processor time"


@pytest.mark.slow
def test_a_loaded_machine_is_no_verdict(clips: list[Path]) -> None:
    """A process that gets no processor for longer than the cap goes on when it gets one."""
    with ClipPool[str](1, Caps(timeout_s=1.0)) as pool:
        answers = pool.map(_requests(clips))
        assert isinstance(next(answers)[1], PreparedClip)
        (decoder,) = (psutil.Process(c.process.pid) for c in pool._children)
        decoder.suspend()
        threading.Timer(3.0, decoder.resume).start()
        assert all(isinstance(answer, PreparedClip) for _, answer in answers)


@pytest.mark.slow
def test_a_process_that_stands_still_stops_the_work(hanging: Path, clips: list[Path]) -> None:
    with (
        ClipPool[str](1, Caps(stall_s=1.5)) as pool,
        pytest.raises(MachineTrouble, match=r"hanging.mp4': its process stood still .* 3 times"),
    ):
        _outcomes(pool, [*clips[:2], hanging])


def _kill(pool: ClipPool[str], times: int, number: signal.Signals, done: threading.Event) -> None:
    """Kill the process that waits on the pipe, `times` times."""
    killed: set[int] = set()
    while len(killed) < times and not done.wait(0.3):
        (running,) = pool._children
        if running.ready and running.process.pid not in killed:
            killed.add(running.process.pid)
            running.process.send_signal(number)


@pytest.fixture
def outcomes_with_kills(
    hanging: Path, clips: list[Path]
) -> Iterator[Callable[[int, signal.Signals], list[str]]]:
    done = threading.Event()

    def run(times: int, number: signal.Signals) -> list[str]:
        with ClipPool[str](1, Caps(stall_s=60)) as pool:
            threading.Thread(target=_kill, args=(pool, times, number, done)).start()
            return [code for _, code in _outcomes(pool, [hanging, *clips[:3]])]

    yield run
    done.set()


Kills = Callable[[int, signal.Signals], list[str]]


def test_a_decoder_that_crashes_twice_costs_the_file(outcomes_with_kills: Kills) -> None:
    assert outcomes_with_kills(2, signal.SIGSEGV) == ["crash", "ok", "ok", "ok"]


def test_a_process_killed_from_outside_costs_no_file(outcomes_with_kills: Kills) -> None:
    """Kills as the kernel does when memory runs out: files are tried again, then all stops."""
    with pytest.raises(MachineTrouble, match=r"killed from outside \(SIGKILL; out of"):
        outcomes_with_kills(3, signal.SIGKILL)


def test_a_process_that_does_not_start_costs_no_file(
    clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONHOME", "/nowhere")
    with (
        ClipPool[str](1, Caps()) as pool,
        pytest.raises(MachineTrouble, match="a decoding process does not start"),
    ):
        _outcomes(pool, clips)


def test_what_a_decoder_raises_unexpectedly_has_its_own_code(
    clips: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(request: ClipRequest) -> None:
        raise ZeroDivisionError(f"in {request.path}\nand more")

    monkeypatch.setattr(child, "prepare_clip", fail)
    request = _requests(clips[:1])[0][1]
    answer = child._answer(request)
    assert answer == RejectedClip("unexpected", f"ZeroDivisionError: in {request.path}")


@pytest.mark.slow
def test_no_space_for_clips_stops_the_work(clips: list[Path], costly: Path) -> None:
    """A limit on file sizes stands in for a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ClipPool[str](1, Caps()) as pool:
        for running in pool._children:
            resource.prlimit(running.process.pid, resource.RLIMIT_FSIZE, (1000, before[1]))
        first = pool.map(_requests([costly]))
        ((_, answer),) = first  # tried again in a new process, which has no such limit
    assert isinstance(answer, PreparedClip)
    program = (
        "import resource, sys\n"
        "from data_prep.jobs.pool import Caps, ClipPool\n"
        "from data_prep.video.clip import ClipRequest, EncodeSettings\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "request = ClipRequest(sys.argv[1], 0.0, None, EncodeSettings())\n"
        "with ClipPool(1, Caps()) as pool:\n"
        "    print(list(pool.map([(0, request)])))\n"
    )
    command = [sys.executable, "-c", program, str(clips[0])]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.stdout == ""
    assert "MachineTrouble: " in failed.stderr
    assert "cannot be kept ([Errno 27] File too large" in failed.stderr


def test_a_full_temporary_directory_does_not_matter(clips: list[Path], tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from data_prep.jobs.pool import Caps, ClipPool\n"
        "from data_prep.video.clip import ClipRequest, EncodeSettings, PreparedClip\n"
        "request = ClipRequest(sys.argv[1], 0.0, None, EncodeSettings())\n"
        "with ClipPool(1, Caps()) as pool:\n"
        "    ((_, clip),) = pool.map([(0, request)])\n"
        "print(type(clip).__name__)\n"
    )
    command = [sys.executable, "-c", program, str(clips[0])]
    environment = os.environ | {"TMPDIR": str(tmp_path / "absent")}
    done = subprocess.run(
        command, capture_output=True, text=True, env=environment, cwd=Path(__file__).parents[3]
    )
    assert done.stdout == "PreparedClip\n", done.stderr


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


@pytest.mark.slow
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
