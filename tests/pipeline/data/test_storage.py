"""Remote shards, their local cache, and reads that fail once or for good."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import fsspec
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from pipeline.data import reader as reader_module
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.loader import build_train_loader
from pipeline.data.shard_cache import ShardCache
from pipeline.data.shards import Shards, open_shards
from pipeline.data.storage import LocalStorage


class FlakyFileSystem(LocalFileSystem):
    """Local files whose reads of tars fail as often as `failures_left` says."""

    protocol = "flaky"
    failures_left = 0
    reads = 0

    def _count(self, path: str) -> None:
        if path.endswith(".tar"):
            type(self).reads += 1
            if type(self).failures_left:
                type(self).failures_left -= 1
                raise OSError("connection reset by peer")

    def cat_file(self, path: str, start=None, end=None, **kwargs: object) -> bytes:
        self._count(path)
        return super().cat_file(self._strip_protocol(path), start, end, **kwargs)

    def get_file(self, rpath: str, lpath: str, **kwargs: object) -> None:
        self._count(rpath)
        super().get_file(rpath, lpath, **kwargs)

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        return super()._strip_protocol(path.removeprefix("flaky://"))


@pytest.fixture
def flaky(monkeypatch: pytest.MonkeyPatch) -> type[FlakyFileSystem]:
    fsspec.register_implementation("flaky", FlakyFileSystem, clobber=True)
    FlakyFileSystem.failures_left = FlakyFileSystem.reads = 0
    monkeypatch.setattr(reader_module, "_FIRST_PAUSE_S", 0.001)
    return FlakyFileSystem


def assert_reads_like(shards: Shards, local: Shards, cache: ShardCache | None = None) -> None:
    reader = shards.reader(cache=cache)
    for index, sample in enumerate(shards.samples(range(len(shards)))):
        assert reader.read(sample) == local.read(index)


def _descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))


def test_local_files_open_at_once_are_few(tmp_path: Path) -> None:
    for number in range(200):
        (tmp_path / f"{number}.tar").write_bytes(b"%03d" % number)
    before = _descriptors()
    storage = LocalStorage(tmp_path)
    for _ in range(2):
        for number in range(200):
            assert storage.read(f"{number}.tar", 0, 3) == b"%03d" % number
    assert _descriptors() - before == 64
    copy = pickle.loads(pickle.dumps(storage))
    assert copy.read("7.tar", 2, 1) == b"7"
    del storage, copy
    assert _descriptors() == before


def test_a_file_dropped_by_others_is_read_to_the_end(tmp_path: Path) -> None:
    """Threads read while every read drops another's file; a reused descriptor would show."""
    for number in range(100):
        (tmp_path / f"{number}.tar").write_bytes(b"%03d" % number * 1000)
    storage = LocalStorage(tmp_path)

    def read(number: int) -> bool:
        if number % 10 == 0:
            storage.forget(f"{number % 100}.tar")
        name = number * 37 % 100
        return storage.read(f"{name}.tar", 3, 2700) == b"%03d" % name * 900

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(4000)))


def test_a_url_reads_like_the_directory(shard_dir: Path, train_shards: Shards) -> None:
    shards = open_shards(f"file://{shard_dir}", "train")
    assert (shards.order(0, 0) == train_shards.order(0, 0)).all()
    assert_reads_like(shards, train_shards)


def test_http(make_shards, tmp_path: Path) -> None:
    """A plain web server, which knows nothing of ranges, so whole shards are cached."""
    directory = make_shards()
    handler = partial(SimpleHTTPRequestHandler, directory=str(directory))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        cache = ShardCache(tmp_path / "cache", 2**30)
        assert_reads_like(open_shards(url), open_shards(directory), cache)
        server.shutdown()
    with pytest.raises(DataError, match="cannot be read"):
        open_shards(url)


def test_unknown_protocol_is_one_line() -> None:
    with pytest.raises(DataError, match=r"nope://bucket/manifest\.json: cannot be read"):
        open_shards("nope://bucket")


def test_passing_trouble_is_tried_again(flaky, shard_dir: Path, train_shards: Shards) -> None:
    shards = open_shards(f"flaky://{shard_dir}", "train")
    flaky.failures_left = 3
    assert shards.read(0) == train_shards.read(0)
    assert flaky.reads == 4


def test_lasting_trouble_gives_a_zero_weight_sample_and_spends_the_budget(
    flaky, shard_dir: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = open_shards(f"flaky://{shard_dir}", "train")
    config = DataConfig(train="unused", workers=0, read_attempts=2, max_bad_samples=1)
    loader = build_train_loader(
        shards, config, img_size=16, num_frames=4, seed=0, global_batch=4, micro_batch=4
    )
    flaky.failures_left = 2
    batch = next(loader)
    assert batch.weight.tolist() == [0, 1, 1, 1]
    assert not batch.clips[0].any()
    assert batch.bad == [(batch.keys[0], "connection reset by peer")]
    assert loader.bad == dict(batch.bad)
    assert batch.keys[0] in caplog.text
    assert next(loader).weight.tolist() == [1, 1, 1, 1]

    flaky.failures_left = 2
    with pytest.raises(DataError, match=r"2 samples .* data\.max_bad_samples=1"):
        next(loader)


def test_a_shard_that_disappears_ends_the_run(make_shards) -> None:
    directory = make_shards()
    shards = open_shards(directory)
    (directory / "train-000001.tar").unlink()
    with pytest.raises(DataError, match=r"train-000001.tar: no longer there"):
        shards.read(5)


def test_the_cache_fetches_each_shard_once(flaky, shard_dir, train_shards, tmp_path: Path) -> None:
    shards = open_shards(f"flaky://{shard_dir}", "train")
    cache = ShardCache(tmp_path / "cache", 2**30)
    assert_reads_like(shards, train_shards, cache)
    assert_reads_like(shards, train_shards, cache)
    assert flaky.reads == 7


def test_the_cache_keeps_its_limit_and_the_most_recent(flaky, shard_dir, tmp_path: Path) -> None:
    shards = open_shards(f"flaky://{shard_dir}", "train")
    sizes = [record.bytes for record in shards.manifest.shards]
    cache = ShardCache(tmp_path / "cache", sum(sizes[:4]) - 1)
    reader = shards.reader(cache=cache)
    first_of_shard = shards.samples([0, 4, 8, 12])
    for age, sample in enumerate(first_of_shard[:3]):
        reader.read(sample)
        os.utime(tmp_path / "cache" / shards.digest / sample.shard, (age, age))
    reader.read(first_of_shard[0])
    reader.read(first_of_shard[3])
    kept = {path.name for path in (tmp_path / "cache").glob("*/*.tar")}
    assert kept == {f"train-00000{i}.tar" for i in (0, 2, 3)}


def test_a_shard_larger_than_the_cache_is_refused(flaky, shard_dir, tmp_path: Path) -> None:
    shards = open_shards(f"flaky://{shard_dir}")
    reader = shards.reader(cache=ShardCache(tmp_path, 1000))
    with pytest.raises(DataError, match=r"raise data\.cache_gib"):
        reader.read(shards.samples([0])[0])


def test_a_damaged_copy_is_fetched_again(flaky, shard_dir, train_shards, tmp_path: Path) -> None:
    shards = open_shards(f"flaky://{shard_dir}", "train")
    cache = ShardCache(tmp_path / "cache", 2**30)
    sample = shards.samples([0])[0]
    shards.reader(cache=cache).read(sample)
    copy = tmp_path / "cache" / shards.digest / sample.shard
    copy.write_bytes(bytes(copy.stat().st_size))
    assert shards.reader(cache=cache).read(sample) == train_shards.read(0)


def test_what_a_killed_download_left_is_replaced(flaky, shard_dir, train_shards, tmp_path) -> None:
    shards = open_shards(f"flaky://{shard_dir}", "train")
    folder = tmp_path / "cache" / shards.digest
    folder.mkdir(parents=True)
    (folder / "train-000000.part").write_bytes(b"half a shard")
    assert_reads_like(shards, train_shards, ShardCache(tmp_path / "cache", 2**30))
    assert not list(folder.glob("*.part"))


def test_two_data_sets_with_equal_shard_names_do_not_mix(make_shards, shard_dir, tmp_path) -> None:
    cache = ShardCache(tmp_path / "cache", 2**30)
    for directory in (shard_dir, make_shards({"train": [9] * 5})):
        assert_reads_like(open_shards(f"file://{directory}"), open_shards(directory), cache)


def _read_everything(url: str, cache: ShardCache, failures: multiprocessing.Queue) -> None:
    shards = open_shards(url, "train")
    reader = shards.reader(cache=cache)
    bad = 0
    for epoch in range(3):
        for sample in shards.samples(shards.order(os.getpid(), epoch)):
            bad += len(reader.read(sample)) != sample.size
    failures.put(bad)


def test_processes_share_a_cache_that_is_too_small(shard_dir: Path, tmp_path: Path) -> None:
    """Each process evicts what the others use; none reads a wrong byte or waits for ever."""
    url = f"file://{shard_dir}"
    limit = 2 * max(record.bytes for record in open_shards(url).manifest.shards)
    context = multiprocessing.get_context("fork")
    failures: multiprocessing.Queue = context.Queue()
    arguments = (url, ShardCache(tmp_path / "cache", limit), failures)
    readers = [context.Process(target=_read_everything, args=arguments) for _ in range(3)]
    for process in readers:
        process.start()
    for process in readers:
        process.join(timeout=60)
    assert [process.exitcode for process in readers] == [0, 0, 0]
    assert [failures.get(timeout=5) for _ in readers] == [0, 0, 0]
    assert sum(path.stat().st_size for path in tmp_path.glob("cache/*/*.tar")) <= limit


def test_training_from_a_cached_url_equals_local_training(shard_dir, tmp_path: Path) -> None:
    batches = []
    for train, options in (
        (shard_dir, {"workers": 0}),
        (f"file://{shard_dir}", {"workers": 2, "cache_dir": tmp_path / "cache"}),
    ):
        config = DataConfig(train=train, **options)
        with build_train_loader(
            open_shards(train, "train"),
            config,
            img_size=16,
            num_frames=4,
            seed=0,
            global_batch=8,
            micro_batch=8,
        ) as loader:
            batches.append([batch.clips for batch in islice(loader, 4)])
    assert all(torch.equal(a, b) for a, b in zip(*batches, strict=True))
