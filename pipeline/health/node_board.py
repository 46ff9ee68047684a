"""What the ranks of one node tell each other without the shared file system.

A directory in the node's own temporary space. The first rank of a node carries what the others
leave there to the run directory, and back: the shared file system meets one rank per node.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pipeline.rundir import attempt_id

# Metadata operations per second that a whole run may cost the shared file system: half for signs of
# life, a quarter for first ranks that look for a call, a quarter for the others, who do so rarely.
BUDGET_PER_S = 20.0


class NodeBoard:
    """Texts by name, left by one rank of this node and read by the others; telemetry, never more.

    Where there is no such directory (another user's, a full disk), nothing is read and what is put
    is lost.
    """

    def __init__(self, run_dir: Path) -> None:
        environment = os.environ
        world = int(environment.get("WORLD_SIZE", "1"))
        self.local_ranks = max(1, int(environment.get("LOCAL_WORLD_SIZE", "1")))
        self.is_first = environment.get("LOCAL_RANK", "0") == "0"
        self.nodes = max(1, world // self.local_ranks)
        where = [environment.get(name, "") for name in ("MASTER_ADDR", "MASTER_PORT")]
        key = "|".join([str(run_dir.resolve()), attempt_id(), *where])
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._root = Path(tempfile.gettempdir()) / f"vmp-{os.getuid()}-{digest}"
        self._mine: set[Path] = set()

    def period_s(self, shortest_s: float, operations: int, share: float) -> float:
        """How often each first rank may do so many operations, with a share of the budget."""
        return max(shortest_s, self.nodes * operations / (BUDGET_PER_S * share))

    def put(self, name: str, text: str) -> None:
        """Whole or not at all."""
        with suppress(OSError):
            if self._make():
                path = self._root / name
                temporary = path.with_name(f".{name}.{os.getpid()}")
                temporary.write_text(text)
                temporary.rename(path)
                self._mine.add(path)

    def get(self, name: str) -> str:
        """ "" when nobody has put it."""
        try:
            return (self._root / name).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def texts(self, prefix: str) -> Iterator[str]:
        """Of all names that begin so."""
        with suppress(OSError):
            for name in sorted(os.listdir(self._root)):
                if name.startswith(prefix):
                    yield self.get(name)

    def forget(self, prefix: str) -> None:
        """What a killed attempt has left under names that begin so."""
        with suppress(OSError):
            for name in os.listdir(self._root):
                if name.startswith(prefix):
                    (self._root / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Take away what this rank has put, and the directory with the last of it."""
        with suppress(OSError):
            for path in self._mine:
                path.unlink(missing_ok=True)
            self._root.rmdir()

    def _make(self) -> bool:
        self._root.mkdir(mode=0o700, exist_ok=True)
        found = self._root.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
