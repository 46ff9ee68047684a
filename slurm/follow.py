"""Reads a log file while another process writes it."""

from __future__ import annotations

from pathlib import Path


class LogFollower:
    """Returns whole lines as they appear. The file need not exist yet."""

    def __init__(self, path: Path, *, from_start: bool) -> None:
        self._path = path
        self._offset = 0 if from_start or not path.exists() else path.stat().st_size
        self._rest = b""

    def new_lines(self) -> list[str]:
        if not self._path.exists():
            return []
        with self._path.open("rb") as file:
            file.seek(self._offset)
            content = file.read()
        self._offset += len(content)
        *lines, self._rest = (self._rest + content).split(b"\n")
        return [line.decode(errors="replace") for line in lines]
