"""Writing a checkpoint while training goes on.

Every rank copies its fragments to host memory and returns; a thread writes them. No collective
runs in a thread: rank 0's thread sees on the shared file system that all shards are durable, and
only then renames the directory and writes the marker.
"""

from __future__ import annotations

import errno
import logging
import re
import shutil
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.checkpoint import durable, layout
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.retention import prune
from pipeline.distributed import World, any_rank, barrier, from_all_ranks
from pipeline.errors import CheckpointError
from pipeline.zero_state import ZeroState

logger = logging.getLogger(__name__)

_POLL_S = 0.02


class CheckpointSaver:
    """Saves to `root`, one checkpoint in flight at a time. All methods: call on every rank."""

    def __init__(self, root: Path, config: CheckpointConfig, world: World) -> None:
        self.root = root
        self.config = config
        self.world = world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        if world.is_main:
            root.mkdir(parents=True, exist_ok=True)
            _remove_leftovers(root)
        barrier()

    @property
    def failed(self) -> bool:
        """Has this rank's writer failed? Not collective."""
        return self._error is not None

    def path_of(self, step: int) -> Path:
        return self.root / layout.checkpoint_name(step)

    def save(self, tensors: ZeroState, state: RunState, config_yaml: str) -> None:
        """Begin a checkpoint; returns once the state is copied to host memory. Collective."""
        self.finish()
        staging = self.root / f"{layout.checkpoint_name(state.step)}.tmp"
        if self.world.is_main:
            shutil.rmtree(staging, ignore_errors=True)
            staging.mkdir()
        barrier()
        copies = {
            f"{key}|{fragment.name}|{fragment.start}": tensor.to("cpu", copy=True)
            for fragment in tensors.fragments()
            for key, tensor in fragment.tensors.items()
        }
        self._start(lambda: self._write(staging, copies, state, config_yaml))

    def finish(self) -> None:
        """Wait until the checkpoint in flight is committed. Collective.

        Raises CheckpointError on every rank when any rank could not write.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if any_rank(self.failed):
            rank, error = next(
                (rank, error) for rank, error in enumerate(from_all_ranks(self._error)) if error
            )
            self._error = None
            raise CheckpointError(
                f"cannot write a checkpoint under {self.root}: rank {rank}: {error}; "
                "older checkpoints are intact; free space or fix the path and resume"
            ) from error

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                # Raised to the training loop by `finish`, which every rank enters together.
                logger.error("checkpoint write failed: %s", error)
                self._error = error

        self._thread = threading.Thread(target=run, name="checkpoint-writer")
        self._thread.start()

    def _write(
        self, staging: Path, tensors: dict[str, torch.Tensor], state: RunState, config_yaml: str
    ) -> None:
        name = layout.shard_name(self.world.rank, self.world.size)
        try:
            self._write_shard(staging, name, tensors)
        except (OSError, RuntimeError):
            with suppress(OSError):  # so that rank 0 need not wait for the time-out
                (staging / f"{name}.failed").touch()
            raise
        if self.world.is_main:
            durable.write_text(staging / layout.STATE_FILE, state.model_dump_json(indent=1))
            durable.write_text(staging / layout.CONFIG_FILE, config_yaml)
            self._await_shards(staging)
            self._commit(staging)

    @staticmethod
    def _write_shard(staging: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
        shard = staging / f"{name}.safetensors"
        try:
            save_file(tensors, shard)
        except SafetensorError as error:  # hides the errno, which says whether the disk is full
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
        durable.sync_file(shard)
        durable.write_json(staging / f"{name}.json", _fingerprint(shard))

    def _await_shards(self, staging: Path) -> None:
        missing = {f"{layout.shard_name(r, self.world.size)}.json" for r in range(self.world.size)}
        deadline = time.monotonic() + self.config.commit_timeout_s
        while missing := {name for name in missing if not (staging / name).is_file()}:
            if failed := sorted(staging.glob("*.failed")):
                raise CheckpointError(f"{failed[0].stem} could not be written by its rank")
            if time.monotonic() > deadline:
                raise CheckpointError(
                    f"{staging}: no {min(missing)} after {self.config.commit_timeout_s:.0f} s "
                    "(checkpoint.commit_timeout_s): that rank failed or the file system is slow"
                )
            time.sleep(_POLL_S)

    def _commit(self, staging: Path) -> None:
        files = {}
        for path in sorted(staging.iterdir()):
            record = path.with_suffix(".json")
            if path.suffix == ".safetensors":
                files[path.name] = durable.read_json(record)
            else:
                files[path.name] = _fingerprint(path)
        final = staging.with_suffix("")
        if final.exists():
            layout.delete(final)
        durable.rename(staging, final)
        durable.write_json(final / layout.MARKER, {"files": files})
        prune(self.root, self.config)


def _fingerprint(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": layout.file_sha256(path)}


def _remove_leftovers(root: Path) -> None:
    """Delete what killed runs left: staging directories and checkpoints without a marker."""
    for path in root.iterdir():
        unfinished = path.name.endswith(".tmp") or (
            layout.STEP_PATTERN.fullmatch(path.name) and not (path / layout.MARKER).is_file()
        )
        if path.is_dir() and unfinished:
            logger.warning("removing unfinished checkpoint %s", path)
            shutil.rmtree(path)
