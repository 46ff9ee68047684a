"""`vmp data cache`: clips decoded once and stored in FFCV's .beton format, sealed like the shards.

FFCV's writer hangs when a sample cannot be made, so it runs in a watched process of its own. An
error, or no progress for `stall_s`, ends that process, and the reason is reported. Only a complete
file gets its final name. `<split>.cache.json`, written last, is the seal of `<split>.beton`.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import IO, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.invalid import first_problem
from pipeline.data.augment import square_crops
from pipeline.data.clips import frame_decoder
from pipeline.data.config import DataConfig
from pipeline.data.errors import DataError
from pipeline.data.sampling import eval_frames
from pipeline.data.shards import Shards, open_shards
from pipeline.rundir.durable import rename, sync_file, write_text

_POLL_S = 0.2


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class CacheOptions(_Frozen):
    """What the cache stores of every sample."""

    frames: int = Field(16, ge=1)
    """Frames per clip; more frames than the model takes leave room for random sampling."""
    size: int = Field(224, ge=1)
    """Side of the central square, in pixels."""
    quality: int = Field(85, ge=0, le=100)
    """JPEG quality of the frames; 0 = raw pixels, which take more space and load faster."""
    sampling: Literal["tsn", "dense", "segment"] = "tsn"
    stride: int = Field(4, ge=1)


class CacheManifest(_Frozen):
    """The seal of one .beton file."""

    source: str
    """Content digest of the shards from which the file was made."""
    split: str
    clips: int
    options: CacheOptions
    bytes: int
    skeleton_sha256: str
    """sha256 of everything but the clips, each of which has a checksum of its own."""


def build_cache(
    shard_dir: Path | str,
    split: str,
    out: Path,
    options: CacheOptions,
    *,
    workers: int = 1,
    stall_s: float = 600.0,
    progress: Callable[[int], object] | None = None,
) -> CacheManifest:
    """Decode every sample of a split into `out/<split>.beton`.

    An intact file of these shards and options is kept; any other is made anew.

    Args:
        workers: processes that decode.
        stall_s: seconds without progress after which the writer is stopped.
        progress: called with the number of bytes written so far.
    Raises DataError when a sample cannot be decoded, when there is no progress for `stall_s`
    seconds, or when ffcv is not installed.
    """
    shards = open_shards(shard_dir, split)
    with suppress(DataError):
        _, there = open_cache(out, split, shards)
        if there.options == options:
            return there
    out.mkdir(parents=True, exist_ok=True)
    (out / _seal(split)).unlink(missing_ok=True)
    part = out / f".{split}.{os.getpid()}.part"
    job = {"shards": shards.location, "split": split, "part": str(part.resolve())}
    try:
        _run_writer(
            {**job, "workers": workers, "options": options.model_dump()},
            part,
            stall_s,
            progress or (lambda _: None),
        )
        clips, sealed = _skeleton(part)
        if clips != len(shards):
            raise DataError(f"{out}: FFCV wrote {clips} clips of {len(shards)}")
        sync_file(part)
        rename(part, out / f"{split}.beton")
    finally:
        part.unlink(missing_ok=True)
    manifest = CacheManifest(
        source=shards.content_digest,
        split=split,
        clips=clips,
        options=options,
        bytes=(out / f"{split}.beton").stat().st_size,
        skeleton_sha256=hashlib.sha256(sealed).hexdigest(),
    )
    write_text(out / _seal(split), manifest.model_dump_json(indent=1))
    return manifest


def open_cache(directory: Path, split: str, shards: Shards) -> tuple[Path, CacheManifest]:
    """Return the .beton file of a split and its manifest.

    Raises DataError unless the file is complete and was made from exactly these shards.
    """
    path = directory / f"{split}.beton"
    advice = "build it again with `vmp data cache`"
    try:
        manifest = CacheManifest.model_validate_json((directory / _seal(split)).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{directory}: no finished cache of split '{split}'; {advice}") from None
    except ValidationError as error:
        seal = directory / _seal(split)
        raise DataError(f"{seal}: not a seal ({first_problem(error)}); {advice}") from None
    if manifest.source != shards.content_digest or manifest.clips != len(shards):
        raise DataError(f"{path}: made from other shards than {shards.location}; {advice}")
    size = path.stat().st_size if path.exists() else 0
    if size != manifest.bytes:
        raise DataError(f"{path}: {size} bytes where {manifest.bytes} were sealed; {advice}")
    _, sealed = _skeleton(path)
    if hashlib.sha256(sealed).hexdigest() != manifest.skeleton_sha256:
        raise DataError(f"{path}: its tables are not those that were sealed; {advice}")
    return path, manifest


def open_fitting_cache(
    config: DataConfig, shards: Shards, *, num_frames: int, img_size: int
) -> Path:
    """Return the .beton file of `config.ffcv_cache`.

    Raises DataError unless the file is intact and its clips fit the model and `config`.
    """
    if config.ffcv_cache is None:
        raise DataError("data.reader=ffcv needs data.ffcv_cache, the output of `vmp data cache`")
    path, manifest = open_cache(config.ffcv_cache, config.train_split, shards)
    kept = manifest.options
    if kept.frames < num_frames or kept.size < img_size:
        raise DataError(
            f"{path}: keeps {kept.frames} frames of {kept.size} pixels, the model takes "
            f"{num_frames} of {img_size}; build a larger one with `vmp data cache`"
        )
    if kept.sampling != config.sampling or kept.stride != config.stride:
        raise DataError(
            f"{path}: sampled '{kept.sampling}' with stride {kept.stride}, the run wants "
            f"'{config.sampling}' with stride {config.stride}; build another with "
            "`vmp data cache` or change data.sampling"
        )
    return path


class StoredClips:
    """Clips of a split as the cache stores them; item i is ((frames, size, size, 3) uint8,)."""

    def __init__(self, shards: Shards, options: CacheOptions) -> None:
        self._shards = shards
        self._reader = shards.reader()
        self._decode = frame_decoder("pyav", adopted=shards.manifest.adopted)
        self._options = options

    def __len__(self) -> int:
        return len(self._shards)

    def __getitem__(self, index: int) -> tuple[NDArray[np.uint8]]:
        options = self._options
        sample = self._shards.samples([int(index)])[0]
        wanted = eval_frames(options.sampling, sample.frames, options.frames, options.stride, 1)[0]
        try:
            frames = self._decode(self._reader.read(sample), wanted, sample.keyframes)
        except (OSError, ValueError) as error:
            raise DataError(f"sample {sample.key} ({sample.shard}): {error}") from error
        square = square_crops(frames, options.size, 1)[0]
        return (square.permute(1, 2, 3, 0).contiguous().numpy(),)


def _seal(split: str) -> str:
    return f"{split}.cache.json"


def _skeleton(path: Path) -> tuple[int, bytes]:
    ffcv_clips = import_ffcv()
    # FFCV does not check tables, so the sizes and offsets in a damaged one can raise any of these.
    try:
        clips, sealed = ffcv_clips.skeleton(path)
        return int(clips), bytes(sealed)
    except (ValueError, AssertionError, OSError) as error:
        raise DataError(
            f"{path}: not a readable .beton file ({error}); build it again with `vmp data cache`"
        ) from None


def import_ffcv() -> ModuleType:
    """Import the module that needs FFCV. Raises DataError when FFCV cannot be imported."""
    try:
        from pipeline.data.ffcv import clips as ffcv_clips
    except ImportError as error:
        raise DataError(
            f"FFCV cannot be used here ({error}); `vmp doctor` says how to install it"
        ) from None
    ffcv_clips.install()
    return ffcv_clips


def _run_writer(
    job: dict[str, object], part: Path, stall_s: float, progress: Callable[[int], object]
) -> None:
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", __name__, json.dumps(job)],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        try:
            _watch(process, part, stall_s, progress)
        finally:
            # The writer's workers are in its process group and may outlive it. SIGTERM ends them
            # but not Python's resource tracker, which then removes their shared memory.
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGTERM)
            process.wait()
        if process.returncode:
            raise DataError(f"{part.parent}: the cache was not built: {_last_line(errors)}")


def _watch(
    process: subprocess.Popen[bytes],
    part: Path,
    stall_s: float,
    progress: Callable[[int], object],
) -> None:
    size, since = -1, time.monotonic()
    while process.poll() is None:
        grown = part.stat().st_size if part.exists() else 0
        if grown != size:
            size, since = grown, time.monotonic()
            progress(size)
        elif time.monotonic() - since > stall_s:
            raise DataError(
                f"{part.parent}: the cache was not built: FFCV's writer did nothing for "
                f"{stall_s:.0f} s"
            )
        time.sleep(_POLL_S)


def _last_line(errors: IO[str]) -> str:
    errors.seek(0)
    lines = [line.strip() for line in errors.read().replace("\r", "\n").splitlines()]
    reasons = [line for line in lines if "Error: " in line]
    return (reasons or lines or ["no message"])[0].rpartition("Error: ")[2]


def _write(job: dict[str, object]) -> None:
    """Write the .beton file of a job; this is the main function of the writer's process."""
    torch.set_num_threads(1)
    ffcv_clips = import_ffcv()
    options = CacheOptions.model_validate(job["options"])
    clips = StoredClips(open_shards(str(job["shards"]), str(job["split"])), options)
    field = ffcv_clips.ClipField(options.frames, options.size, options.quality)
    threading.Thread(target=_end_with_first_failure, daemon=True).start()
    ffcv_clips.write_beton(Path(str(job["part"])), clips, field, int(str(job["workers"])))


def _end_with_first_failure() -> None:
    """End the process when a worker dies, because the writer would wait for it forever."""
    known: set[multiprocessing.process.BaseProcess] = set()
    while True:
        known |= set(multiprocessing.active_children())
        if any(child.exitcode for child in known):
            os._exit(1)
        time.sleep(_POLL_S)


if __name__ == "__main__":
    _write(json.loads(sys.argv[1]))
