"""Reads what a foreign tar contains: places of the videos, and the small files beside them.

`tarfile` ends without a word at a damaged header or where a tar was cut, so the end is checked too.
"""

from __future__ import annotations

import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data_prep.annotation import VIDEO_SUFFIXES
from data_prep.errors import DataError, one_line, refused
from data_prep.schema import is_member_name

_BLOCK = 512
_CHUNK = 1 << 20
_LABELS = ("cls", "json", "txt")
_LARGEST_LABEL = 1 << 20


@dataclass(slots=True)
class Member:
    """The video of a sample, by its place in the tar."""

    name: str
    offset: int
    size: int


@dataclass(slots=True)
class ForeignSample:
    """The members of a tar whose names are equal up to the first dot of the last part."""

    key: str
    video: Member | None = None
    labels: dict[str, bytes] = field(default_factory=dict)
    """Suffix (cls, json or txt) -> content."""
    fault: tuple[str, str] | None = None
    """The (code, detail) of what makes the sample unusable."""


def read_members(path: Path) -> list[ForeignSample]:
    """Read the headers of a tar and the label files in it.

    Samples come in the order of their first members. Members that are no part of a sample are
    passed over. Raises `DataError` for a tar that is damaged, cut short or compressed.
    """
    samples: dict[str, ForeignSample] = {}
    try:
        with path.open("rb") as file, _opened(file, path) as tar:
            for info in tar:
                _add(samples, tar, info)
            _check_end(path, tar.offset)
    except DataError:
        raise
    # Numbers in extended headers are parsed without a check, so they raise more than TarError.
    except (tarfile.TarError, ValueError, OverflowError) as error:
        raise DataError(f"{path}: damaged tar ({one_line(error)}); fetch it again") from None
    except OSError as error:
        raise refused(error, f"{path}: cannot be read") from None
    return list(samples.values())


def _opened(file: IO[bytes], path: Path) -> tarfile.TarFile:
    try:
        return tarfile.open(fileobj=file, mode="r:")
    except tarfile.ReadError as error:
        raise DataError(
            f"{path}: not an uncompressed tar ({one_line(error)}); unpack a compressed one to "
            ".tar, because its samples cannot be read alone"
        ) from None


def _add(samples: dict[str, ForeignSample], tar: tarfile.TarFile, info: tarfile.TarInfo) -> None:
    name = info.name.removeprefix("./")
    base = name.rpartition("/")[2]
    stem, dot, suffix = base.partition(".")
    is_video = any(base.lower().endswith(known) for known in VIDEO_SUFFIXES)
    if info.isdir() or not stem or not dot or not (is_video or suffix in _LABELS):
        return
    key = name[: len(name) - len(base)] + stem
    if is_video and "." in suffix:
        fault = ("bad_name", f"readers of WebDataset take what follows {stem!r} for its suffix")
        samples[name] = ForeignSample(name, fault=fault)
        return
    sample = samples.setdefault(key, ForeignSample(key))
    if not is_member_name(name):
        sample.fault = ("bad_name", "not a plain relative path")
    elif not info.isreg() or info.issparse():
        sample.fault = ("not_file", f"{suffix}: a link, a device or a file with holes")
    elif (is_video and sample.video is not None) or suffix in sample.labels:
        sample.fault = ("malformed", f"{suffix}: there is more than one")
    elif is_video:
        sample.video = Member(name, info.offset_data, info.size)
    elif info.size > _LARGEST_LABEL:
        sample.fault = ("malformed", f"{suffix}: {info.size} bytes are no label")
    else:
        content = tar.extractfile(info)
        assert content is not None, f"{name}: a regular file has content"
        sample.labels[suffix] = content.read()


def _check_end(path: Path, reached: int) -> None:
    """Raise `DataError` unless zeros, and nothing else, follow the last member."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(reached)
        mark = file.read(_BLOCK)
        if len(mark) < _BLOCK or any(mark):
            raise DataError(
                f"{path}: damaged tar: cut short, or a broken header at byte "
                f"{min(reached, size)} of {size}; fetch it again"
            )
        while rest := file.read(_CHUNK):
            if any(rest):
                raise DataError(
                    f"{path}: something follows its end mark at byte {reached}, as when tars are "
                    "joined by cat; readers would not find it, so split the file"
                )
