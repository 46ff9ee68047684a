"""Writing checkpoints in the background while training goes on.

Every rank copies its fragments to host memory and returns; a thread writes them to disk. No
collective runs in the thread. Rank 0's thread waits until the shared file system shows that all
shards are durable, then renames the directory and writes the marker.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from pipeline.checkpoint import layout
from pipeline.checkpoint.config import CheckpointConfig
from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.retention import prune
from pipeline.errors import SaveError
from pipeline.rundir import durable
from pipeline.rundir.paths import is_unfinished
from pipeline.training.distributed import World, any_rank, from_all_ranks, on_main
from pipeline.training.zero_state import Fragment

logger = logging.getLogger(__name__)

_POLL_S = 0.02


class CheckpointSaver:
    """Writer of checkpoints under `root`, with at most one in flight. Call it on every rank."""

    def __init__(self, root: Path, config: CheckpointConfig, world: World) -> None:
        self.root = root
        self.config = config
        self.world = world
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None
        self.timings: dict[str, float] = {}
        """Seconds that training waited for the newest checkpoint, and until it was committed."""
        on_main(lambda: _remove_leftovers(root))

    @property
    def failed(self) -> bool:
        """Whether this rank's writer has failed. Not collective."""
        return self._error is not None

    def path_of(self, step: int) -> Path:
        return self.root / layout.checkpoint_name(step)

    def save(self, fragments: Iterable[Fragment], state: RunState, config_yaml: str) -> None:
        """Begin a checkpoint and return once the state is copied to host memory. Collective.

        Args:
            fragments: this rank's share of the state, see `ZeroState.fragments`.
            config_yaml: text of the checkpoint's config.yaml.
        Raises SaveError on every rank when the previous checkpoint failed or this one cannot begin.
        """
        began = time.monotonic()
        self.finish()
        staging = self.root / f"{layout.checkpoint_name(state.step)}.tmp"
        try:
            on_main(lambda: _make_empty(staging))
        except OSError as error:
            raise self._cannot_write(0, error) from error
        copies = {
            f"{key}|{fragment.name}|{fragment.start}": tensor.to("cpu", copy=True)
            for fragment in fragments
            for key, tensor in fragment.tensors.items()
        }
        blocked_s = time.monotonic() - began

        def work() -> None:
            self._write(staging, copies, state, config_yaml)
            self.timings = {"save_blocked_s": blocked_s, "save_s": time.monotonic() - began}

        self._start(work)

    def finish(self) -> None:
        """Wait until the checkpoint in flight is committed. Collective.

        Raises SaveError on every rank when any rank could not write.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if any_rank(self.failed):
            failed = [(r, e) for r, e in enumerate(from_all_ranks(self._error)) if e]
            # Rank 0 may only report that another rank failed, so an OSError is preferred.
            rank, error = min(failed, key=lambda pair: not isinstance(pair[1], OSError))
            self._error = None
            raise self._cannot_write(rank, error) from error

    def _cannot_write(self, rank: int, error: Exception) -> SaveError:
        return SaveError(
            f"cannot write a checkpoint under {self.root}: rank {rank}: {error}; "
            "older checkpoints are intact; free space or fix the path and resume"
        )

    def _start(self, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except Exception as error:
                # `finish`, which every rank enters together, raises it in the training loop.
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
            with suppress(OSError):  # rank 0 then need not wait for the time-out
                (staging / f"{name}.failed").touch()
            raise
        if self.world.is_main:
            durable.write_text(staging / layout.STATE_FILE, state.model_dump_json(indent=1))
            durable.write_text(staging / layout.CONFIG_FILE, config_yaml)
            self._await_shards(staging)
            self._commit(staging)
            prune(self.root, self.config, newest=state)

    @staticmethod
    def _write_shard(staging: Path, name: str, tensors: dict[str, torch.Tensor]) -> None:
        shard = staging / f"{name}.safetensors"
        try:
            save_file(tensors, shard)
        except SafetensorError as error:  # its text alone has the errno of a full disk
            number = re.search(r"os error (\d+)", str(error))
            raise OSError(int(number[1]) if number else errno.EIO, str(error)) from error
        durable.sync_file(shard)
        durable.write_json(staging / f"{name}.json", _fingerprint(shard))

    def _await_shards(self, staging: Path) -> None:
        missing = {f"{layout.shard_name(r, self.world.size)}.json" for r in range(self.world.size)}
        deadline = time.monotonic() + self.config.commit_timeout_s
        # One listing costs the shared file system less than a look for each rank's file.
        while missing := missing - (present := set(os.listdir(staging))):
            if failed := sorted(name for name in present if name.endswith(".failed")):
                raise SaveError(f"{Path(failed[0]).stem} could not be written by its rank")
            if time.monotonic() > deadline:
                raise SaveError(
                    f"{staging}: no {min(missing)} after {self.config.commit_timeout_s:.0f} s "
                    "(checkpoint.commit_timeout_s): that rank failed or the file system is slow"
                )
            time.sleep(_POLL_S)

    def _commit(self, staging: Path) -> None:
        files = {}
        names = sorted(os.listdir(staging))
        for path in (staging / name for name in names if not name.endswith(".safetensors")):
            content = path.read_bytes()
            shard = path.with_suffix(".safetensors").name
            if path.suffix == ".json" and shard in names:  # the shard's size and hash
                files[shard] = json.loads(content)
            digest = hashlib.sha256(content).hexdigest()
            files[path.name] = {"bytes": len(content), "sha256": digest}
        final = staging.with_suffix("")
        if final.is_dir() and not final.is_symlink():  # a user may have linked to it
            layout.delete(final)
        durable.sync_file(staging)  # a rank may not have synced its last file's name yet
        durable.rename(staging, final)
        durable.write_json(final / layout.MARKER, {"files": files})


def _make_empty(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()


def _fingerprint(path: Path) -> dict[str, int | str]:
    return {"bytes": path.stat().st_size, "sha256": layout.file_sha256(path)}


def _remove_leftovers(root: Path) -> None:
    """Delete the staging directories and unmarked checkpoints that killed runs left."""
    root.mkdir(parents=True, exist_ok=True)
    for path in root.iterdir():
        if is_unfinished(path):
            logger.warning("removing unfinished checkpoint %s", path)
            shutil.rmtree(path)
