"""A foreign tar with any damage gives its members or a one-line error."""

from __future__ import annotations

import io
import random
import tarfile
from pathlib import Path

import pytest

from data_prep.adopted.members import ForeignSample, read_members
from data_prep.errors import DataError


def a_tar(form: int) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=form) as tar:
        for number in range(4):
            for suffix in ("mp4", "cls"):
                info = tarfile.TarInfo(f"{'long' * 40}/ü{number}.{suffix}")
                info.size = 20
                info.pax_headers = {"comment": "x" * 30}
                tar.addfile(info, io.BytesIO(b"content of twenty b."))
    return file.getvalue()


def members_or_none(path: Path) -> list[ForeignSample] | None:
    """The samples; None after a refusal, which must be one line."""
    try:
        return read_members(path)
    except DataError as error:
        refusal = str(error)
    assert refusal.isprintable()
    return None


def test_extended_headers_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "t.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("a.mp4")
        info.pax_headers = {"GNU.sparse.map": "one,two", "GNU.sparse.size": "9"}
        tar.addfile(info)
    with pytest.raises(DataError, match="damaged tar"):
        read_members(path)


def test_any_damage_gives_members_or_one_line(tmp_path: Path) -> None:
    chance = random.Random(7)
    path = tmp_path / "t.tar"
    whole = refused = 0
    for form in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT):
        content = a_tar(form)
        for _ in range(120):
            changed = bytearray(content)
            for _ in range(chance.randint(1, 3)):
                place = chance.randrange(512 * 40) % len(changed)
                changed[place] = chance.choice(b"\0\1\x80\xff-19 =\n") ^ chance.choice((0, 0, 32))
            end = chance.choice((len(changed), chance.randrange(len(changed))))
            path.write_bytes(changed[:end])
            samples = members_or_none(path)
            if samples is None:
                refused += 1
                continue
            whole += 1
            size = path.stat().st_size
            for sample in samples:
                if sample.video is not None and sample.fault is None:
                    assert (
                        0 <= sample.video.offset <= sample.video.offset + sample.video.size <= size
                    )
    assert whole > 5
    assert refused > 50
