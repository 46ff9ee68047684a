"""Features of videos as a parquet file: what the head of the model reads, one row per answer."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import ConfigError

_ROWS_AT_ONCE = 1000


class FeatureFile:
    """Writes rows of `video`, `start_s`, `end_s` and `features`, a list of `width` float32.

    The times are null for a whole video. The file appears under its name when all is written; an
    earlier file stays until then. Raises ConfigError when it cannot be written.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._path = path
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        self._schema = pa.schema(
            [
                ("video", pa.string()),
                ("start_s", pa.float64()),
                ("end_s", pa.float64()),
                ("features", pa.list_(pa.float32(), width)),
            ]
        )
        self._rows: list[Mapping[str, object]] = []
        try:
            self._writer = pq.ParquetWriter(self._temporary, self._schema)
        except OSError as error:
            raise self._refused(error) from error

    def add(
        self, video: str, features: NDArray[np.float32], times: tuple[float, float] | None = None
    ) -> None:
        start, end = times or (None, None)
        row = {"video": video, "start_s": start, "end_s": end, "features": features}
        self._rows.append(row)
        if len(self._rows) == _ROWS_AT_ONCE:
            self._flush()

    def __enter__(self) -> FeatureFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                self._flush()
            self._writer.close()
            if kind is None:
                self._temporary.replace(self._path)
        except OSError as failure:
            raise self._refused(failure) from failure
        finally:
            self._temporary.unlink(missing_ok=True)

    def _flush(self) -> None:
        try:
            self._writer.write_table(pa.Table.from_pylist(self._rows, self._schema))
        except OSError as error:
            raise self._refused(error) from error
        self._rows = []

    def _refused(self, error: OSError) -> ConfigError:
        return ConfigError(f"{self._path}: cannot be written ({error.strerror or error})")
