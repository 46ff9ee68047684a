"""Messages between the ranks of one node that do not load the shared file system.

The ranks exchange files in the node's own temporary directory. The first rank of a node carries
their content to the run directory and back, so that only one rank per node uses the shared file
system.
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

# A whole run may cause this many metadata operations per second on the shared file system: half for
# heartbeats, a quarter for first ranks that look for a call for stacks, and a quarter for the other
# ranks, which look less often.
BUDGET_PER_S = 20.0


class NodeBoard:
    """Named texts that one rank of this node writes and the others read, for telemetry only.

    If the directory cannot be used (another user owns it, or the disk is full), reads return
    nothing and writes are lost.
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
        """Return how often, in seconds, each first rank may do `operations` metadata operations.

        `share` is the fraction of `BUDGET_PER_S` that all first ranks together may use.
        """
        return max(shortest_s, self.nodes * operations / (BUDGET_PER_S * share))

    def put(self, name: str, text: str) -> None:
        """Write a text under `name`, atomically."""
        with suppress(OSError):
            if self._make():
                path = self._root / name
                temporary = path.with_name(f".{name}.{os.getpid()}")
                temporary.write_text(text)
                temporary.rename(path)
                self._mine.add(path)

    def get(self, name: str) -> str:
        """Return the text under `name`; an empty string when there is none."""
        try:
            return (self._root / name).read_text()
        except (OSError, UnicodeDecodeError):
            return ""

    def texts(self, prefix: str) -> Iterator[str]:
        """Yield the texts of all names that begin with `prefix`."""
        with suppress(OSError):
            for name in sorted(os.listdir(self._root)):
                if name.startswith(prefix):
                    yield self.get(name)

    def forget(self, prefix: str) -> None:
        """Delete what a killed attempt left under names that begin with `prefix`."""
        with suppress(OSError):
            for name in os.listdir(self._root):
                if name.startswith(prefix):
                    (self._root / name).unlink(missing_ok=True)

    def leave(self) -> None:
        """Delete what this rank wrote, and the directory once it is empty."""
        with suppress(OSError):
            for path in self._mine:
                path.unlink(missing_ok=True)
            self._root.rmdir()

    def _make(self) -> bool:
        self._root.mkdir(mode=0o700, exist_ok=True)
        found = self._root.lstat()
        return stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid()
