"""Clips in FFCV's .beton format: the field, its compiled decoder, writing and reading.

No other module imports ffcv (1.0.2). This module goes beyond ffcv's documentation in three ways.
Every clip has a checksum, which the compiled decoder verifies. A failing reader thread raises an
error instead of letting the trainer wait forever. The thread counts of torch stay unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import cv2
import numba
import numpy as np
from ffcv.fields.base import ARG_TYPE, Field
from ffcv.libffcv import imdecode, memcpy
from ffcv.loader import Loader, OrderOption
from ffcv.loader.epoch_iterator import EpochIterator
from ffcv.pipeline.allocation_query import AllocationQuery
from ffcv.pipeline.compiler import Compiler
from ffcv.pipeline.operation import Operation
from ffcv.pipeline.state import State
from ffcv.reader import Reader
from ffcv.writer import MAX_PAGE_SIZE, MIN_PAGE_SIZE, DatasetWriter
from numpy.typing import NDArray

from pipeline.data.errors import DataError

Clips = NDArray[np.uint8]

_FIELD = "clip"
_SHAPE = np.dtype([("frames", "<u8"), ("size", "<u8"), ("quality", "<u8")])


class ClipSource(Protocol):
    """Source of `write_beton`; item i is (clip,), of shape (frames, size, size, 3) uint8."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> tuple[Clips]: ...


def _keep_torch_threads(cls: type[Compiler], count: int) -> None:
    cls.num_threads = count
    numba.set_num_threads(min(count, numba.config.NUMBA_NUM_THREADS))


def install() -> None:
    """Keep FFCV from setting torch's thread count, which it would do for the whole process.

    A second call changes nothing.
    """
    Compiler.set_num_threads = classmethod(_keep_torch_threads)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def checksum(data: NDArray[np.uint8]) -> np.uint64:
    """Compute a Fletcher checksum over 8-byte words, which shows flipped bits, holes and shifts."""
    low, high = np.uint64(1), np.uint64(0)
    for word in data.view(np.uint64):
        low += word
        high += low
    return low ^ (high << np.uint64(1))


class ClipField(Field):  # type: ignore[misc]
    """A clip of fixed shape as raw pixels, or as one JPEG per frame."""

    def __init__(self, frames: int, size: int, quality: int) -> None:
        self.frames = frames
        self.size = size
        self.quality = quality
        """JPEG quality; 0 = raw pixels."""

    @property
    def num_bytes(self) -> int:
        return self.frames * self.size * self.size * 3

    @property
    def metadata_type(self) -> np.dtype[Any]:
        ends = ("ends", "<u8", (self.frames,))
        return np.dtype([("pointer", "<u8"), ("checksum", "<u8"), ends])

    @staticmethod
    def from_binary(binary: NDArray[np.uint8]) -> ClipField:
        frames, size, quality = binary[: _SHAPE.itemsize].view(_SHAPE)[0]
        return ClipField(int(frames), int(size), int(quality))

    def to_binary(self) -> Any:
        result = np.zeros(1, dtype=ARG_TYPE)[0]
        shape = np.array([(self.frames, self.size, self.quality)], _SHAPE)
        result[0][: _SHAPE.itemsize] = shape.view("<u1")
        return result

    def encode(
        self, destination: Any, clip: Clips, malloc: Callable[[int], tuple[int, Clips]]
    ) -> None:
        if clip.shape != (self.frames, self.size, self.size, 3):
            raise ValueError(
                f"clip of shape {clip.shape} in a cache of {self.frames} x {self.size}"
            )
        parts = [clip.reshape(-1)] if not self.quality else [self._jpeg(frame) for frame in clip]
        content = np.concatenate(parts)
        # The checksum needs whole 8-byte words.
        content = np.pad(content, (0, -len(content) % 8))
        destination["pointer"][0], region = malloc(len(content))
        region[:] = content
        destination["checksum"][0] = checksum(content)
        destination["ends"][0] = np.cumsum([len(part) for part in parts]) if self.quality else 0

    def _jpeg(self, frame: Clips) -> Clips:
        options = [int(cv2.IMWRITE_JPEG_QUALITY), self.quality]
        done, content = cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)
        if not done:
            raise ValueError("a frame cannot be encoded as JPEG")
        return np.asarray(content, np.uint8).reshape(-1)

    def get_decoder_class(self) -> type[Operation]:
        return ClipDecoder


class ClipDecoder(Operation):  # type: ignore[misc]
    """Compiled decoder of `ClipField`.

    The result is the pixels and one more byte, which is 1 if the checksum and the JPEG decoding
    were right and 0 otherwise. After an exception in compiled code, the loader would wait forever.
    """

    def declare_state_and_memory(self, previous: State) -> tuple[State, AllocationQuery]:
        shape = (self.field.num_bytes + 1,)
        dtype = np.dtype("u1")
        return replace(previous, jit_mode=True, shape=shape, dtype=dtype), AllocationQuery(
            shape, dtype
        )

    def generate_code(self) -> Callable[..., Any]:
        read, each = self.memory_read, Compiler.get_iterator()
        decode_jpeg, copy = Compiler.compile(imdecode), Compiler.compile(memcpy)
        frames, size, quality = self.field.frames, self.field.size, self.field.quality
        total, per_frame = self.field.num_bytes, size * size * 3

        def decode(indices, destination, metadata, storage_state):  # type: ignore[no-untyped-def]
            for place in each(len(indices)):
                row = metadata[indices[place]]
                content = read(row["pointer"], storage_state)
                out = destination[place]
                good = checksum(content) == row["checksum"]
                if good and quality:
                    begin = 0
                    for frame in range(frames):
                        end = row["ends"][frame]
                        pixels = out[frame * per_frame : (frame + 1) * per_frame]
                        status = decode_jpeg(
                            content[begin:end],
                            pixels.reshape(size, size, 3),
                            *(size, size, size, size, 0, 0, 1, 1, False, False),
                        )
                        good = good and status == 0
                        begin = end
                elif good:
                    copy(content[:total], out)
                out[total] = 1 if good else 0
            return destination[: len(indices)]

        decode.is_parallel = True  # type: ignore[attr-defined]
        return decode


def write_beton(path: Path, clips: ClipSource, field: ClipField, workers: int) -> None:
    """Store all clips in order. FFCV hangs when a clip cannot be made, so `cache` watches this."""
    largest = field.num_bytes + 8 * field.frames
    page = max(4 * MIN_PAGE_SIZE, 1 << (8 * largest - 1).bit_length())
    if page >= MAX_PAGE_SIZE:
        raise DataError(f"clips of {largest} bytes are too large for FFCV's pages")
    writer = DatasetWriter(str(path), {_FIELD: field}, page_size=page, num_workers=workers)
    writer.from_indexed_dataset(clips, chunksize=4)


def skeleton(path: Path) -> tuple[int, bytes]:
    """Return the number of clips, and the bytes of header, metadata and allocation table."""
    reader = Reader(str(path), {_FIELD: ClipField})
    before = reader.header.nbytes + reader.field_descriptors.nbytes + reader.metadata.nbytes
    with path.open("rb") as file:
        head = file.read(before)
        file.seek(int(reader.header["alloc_table_ptr"]))
        return int(reader.num_samples), head + file.read()


# Loaders are cached for the life of the process, because numba warns when compiled code is
# collected.
@cache
def _loader(path: str, modified_ns: int, batch_size: int, threads: int, ahead: int) -> Loader:
    return Loader(
        path,
        batch_size=batch_size,
        num_workers=threads,
        os_cache=True,
        order=OrderOption.SEQUENTIAL,
        seed=0,
        pipelines={_FIELD: [ClipDecoder()]},
        custom_fields={_FIELD: ClipField},
        drop_last=False,
        batches_ahead=ahead,
    )


class BetonReader:
    """Reader of clips by number, which decodes `ahead` batches in advance in `threads` threads."""

    def __init__(self, path: Path, batch_size: int, threads: int, ahead: int) -> None:
        self._path = path
        self._loader = _loader(str(path), path.stat().st_mtime_ns, batch_size, threads, ahead)
        field = self._loader.reader.handlers[_FIELD]
        self.shape = (field.frames, field.size, field.size, 3)
        # One batch is read now to compile the decoder: numba parses source code, which two threads
        # of CPython 3.11 must not do at once.
        for _ in self.batches([0]):
            pass

    def batches(self, order: Sequence[int] | NDArray[np.int64]) -> Iterator[Clips]:
        """Yield batches of the clips in `order`: (batch, frames, size, size, 3) uint8.

        A batch is valid only until the next one is requested. Raises DataError when a clip is
        corrupt or the reader fails.
        """
        rows = np.asarray(order, np.uint64)
        # Loader.__iter__ would truncate this order to the length of the first one.
        with closing(EpochIterator(self._loader, rows)) as iterator:
            for first in range(0, len(rows), self._loader.batch_size):
                (batch,) = self._next(iterator)
                bad = np.flatnonzero(batch[:, -1] != 1)
                if len(bad):
                    row = int(rows[first + bad[0]])
                    raise DataError(
                        f"{self._path}: clip {row} is corrupt; build it again with `vmp data cache`"
                    )
                yield batch[:, :-1].reshape(-1, *self.shape)

    def _next(self, iterator: EpochIterator) -> Any:
        queue = iterator.output_queue
        while True:
            with queue.not_empty:
                if queue.not_empty.wait_for(lambda: len(queue.queue) > 0, timeout=1.0):
                    break
            # FFCV's thread ends without an error when it fails, so its life is checked here.
            if not iterator.is_alive() and not queue.queue:
                raise DataError(f"{self._path}: the FFCV reader stopped with an error (see above)")
        return next(iterator)
