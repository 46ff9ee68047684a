"""The tars to adopt, and the plain names under which the manifest knows them."""

from __future__ import annotations

import os
import re
import uuid
from pathlib import Path
from typing import NamedTuple

from data_prep.errors import DataError, one_line, refused
from data_prep.schema import SPLIT_PATTERN

_PLAIN = re.compile(rf"{SPLIT_PATTERN}\.tar")


class Place(NamedTuple):
    """A tar and its name in the shard directory."""

    tar: Path
    link: Path
    """A link to the tar, or the tar itself when the index lies beside it."""

    def make_link(self) -> None:
        """Make the link, in place of another one. Raises `DataError` if a file is in the way."""
        if self.link == self.tar:
            return
        try:
            if self.link.exists() and not self.link.is_symlink():
                raise DataError(f"{self.link}: a file, where a link to {self.tar} should be")
            temporary = self.link.with_name(f".{self.link.name}.{uuid.uuid4().hex}.tmp")
            temporary.symlink_to(os.path.abspath(self.tar))
            temporary.replace(self.link)
        except OSError as error:
            raise refused(error, f"--out {self.link.parent}: no link can be made") from None


def places(source: Path, out: Path | None, split: str) -> list[Place]:
    """List the tars of a directory, or the one tar, in the order of their names.

    Raises `DataError` when there is none, or when a tar needs another name and `out` is not given.
    """
    try:
        if source.is_dir():
            tars = sorted(path for path in source.iterdir() if path.suffix == ".tar")
            packed = any(path.name.endswith((".tar.gz", ".tgz", ".tar.zst")) for path in tars)
            packed = packed or any(".tar." in path.name for path in source.iterdir())
        else:
            tars, packed = [source] if source.is_file() else [], False
    except OSError as error:
        raise refused(error, f"{source}: cannot be read") from None
    if not tars:
        what = "only compressed tars, which cannot be read in place" if packed else "no .tar file"
        raise DataError(f"{source}: {what if source.exists() else 'no such file or directory'}")
    if out is None or out.resolve() == tars[0].parent.resolve():
        odd = [tar.name for tar in tars if not _PLAIN.fullmatch(tar.name)]
        if odd:
            raise DataError(
                f"{source}: {one_line(odd[0])!r} is no plain name (letters, digits, - and _); give "
                "--out DIR, where links with plain names are made"
            )
        return [Place(tar, tar) for tar in tars]
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise refused(error, f"--out {out}: cannot be made") from None
    return [Place(tar, out / f"{split}-{number:06d}.tar") for number, tar in enumerate(tars)]
