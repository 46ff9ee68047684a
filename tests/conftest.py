"""Shared fixtures. A missing component is a failure under VMP_CI=1 and a skip elsewhere."""

from __future__ import annotations

import importlib.util
import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling

from data_prep.options import ShardConfig
from data_prep.shard import shard
from data_prep.synthetic import SynthOptions, synthesize

# Two cores are shared by the ranks that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")

ROOT = Path(__file__).parents[1]
PASSED = os.environ.get("VMP_TEST_PASSED")
"""A file of the tests that have passed already on the machine without optional components."""
_passed: set[str] = set()
SLURM = "tests/slurm/"
"""The tests on the cluster, which one process at a time may start."""


def missing_components() -> list[str]:
    """The components that are missing here, for which tests would skip."""
    programs = {"a C++ compiler": "c++", "slurmctld": "slurmctld", "munged": "munged"}
    search = os.environ["PATH"] + ":/usr/sbin:/sbin"
    missing = [name for name, x in programs.items() if shutil.which(x, path=search) is None]
    packages = ("cuda", "ffcv", "mkdocs", "onnxruntime", "torchcodec")
    return missing + [name for name in packages if importlib.util.find_spec(name) is None]


def pytest_sessionstart() -> None:
    """Fail in CI when a component is missing, as no test may be skipped there."""
    missing = missing_components() if os.environ.get("VMP_CI") == "1" else []
    if missing:
        pytest.exit(f"VMP_CI=1, but missing here: {', '.join(missing)}", returncode=1)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadScopeScheduling:
    """Give each test process whole files, and one of them all files that need the cluster."""
    scheduler = LoadScopeScheduling(config, log)
    scheduler._split_scope = _group  # type: ignore[method-assign]
    return scheduler


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what has passed, and put files with slow tests first.

    Test processes then end at about the same time.
    """
    if before := _passed_before():
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in before])
        items[:] = [item for item in items if item.nodeid not in before]
    if not hasattr(config, "workerinput"):  # the only process
        return
    is_slow = {_group(item.nodeid) for item in items if _takes_long(item)}
    items.sort(key=lambda item: (_group(item.nodeid) != SLURM, _group(item.nodeid) not in is_slow))


def pytest_sessionfinish(session: pytest.Session) -> None:
    if PASSED and not hasattr(session.config, "workerinput"):
        Path(PASSED).write_text("\n".join(sorted(_passed_before() | _passed)))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        _passed.add(report.nodeid)


def _passed_before() -> set[str]:
    return set(Path(PASSED).read_text().splitlines()) if PASSED and Path(PASSED).exists() else set()


def _group(nodeid: str) -> str:
    path = nodeid.partition("::")[0]
    return SLURM if path.startswith(SLURM) else path


def _takes_long(item: pytest.Item) -> bool:
    return any(item.get_closest_marker(name) for name in ("slow", "dist"))


def require(present: bool, what: str) -> None:
    """Skip, or fail in CI, when a component that the test needs is missing."""
    if present:
        return
    if os.environ.get("VMP_CI") == "1":
        pytest.fail(f"VMP_CI=1, but {what} is missing")
    pytest.skip(f"{what} is missing")


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Undo what a test, or our code that it calls, leaves in the environment of the process."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture(autouse=True)
def _own_determinism() -> Iterator[None]:
    """Undo what a test that trains in this process leaves in torch's settings."""
    mode, fills = 0, True  # as torch begins
    if (torch := sys.modules.get("torch")) is not None:
        mode = torch.get_deterministic_debug_mode()
        fills = torch.utils.deterministic.fill_uninitialized_memory
    yield
    if (torch := sys.modules.get("torch")) is not None:
        torch.set_deterministic_debug_mode(mode)
        torch.utils.deterministic.fill_uninitialized_memory = fills


@pytest.fixture(scope="session")
def real_videos() -> Path:
    """The folder of real clips that VMP_TEST_VIDEOS names, which is optional."""
    named = os.environ.get("VMP_TEST_VIDEOS")
    require(named is not None, "VMP_TEST_VIDEOS (a folder of real clips to test with)")
    folder = Path(str(named)).resolve()
    require(folder.is_dir(), f"VMP_TEST_VIDEOS={named}: the folder")
    return folder


@pytest.fixture(scope="session")
def glyph_videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small rendered data set: videos and annotations.csv."""
    videos = tmp_path_factory.mktemp("glyphs") / "videos"
    synthesize(videos, SynthOptions(clips_per_split={"train": 100, "val": 24}, seed=3), workers=1)
    return videos


@pytest.fixture(scope="session")
def glyph_shards(glyph_videos: Path) -> Path:
    """The small data set, sharded: 100 training and 24 validation clips of 8 classes."""
    out = glyph_videos.parent / "shards"
    shard(
        ShardConfig(
            format="csv",
            annotations=glyph_videos / "annotations.csv",
            videos=glyph_videos,
            out=str(out),
            clips_per_shard=32,
            decoders=1,
        ),
        show_progress=False,
    )
    return out
