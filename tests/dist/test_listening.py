"""A run on one host cannot be reached from outside over the network."""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from pathlib import Path

import psutil
import pytest

from pipeline.errors import ConfigError
from pipeline.training import store
from pipeline.training.distributed import free_port
from tests import runs

pytestmark = pytest.mark.dist


def _listening(process: psutil.Process) -> set[tuple[str, int]]:
    found = set()
    for member in [process, *process.children(recursive=True)]:
        try:
            connections = member.net_connections("inet")
        except psutil.NoSuchProcess:
            continue
        found |= {tuple(c.laddr) for c in connections if c.status == psutil.CONN_LISTEN}
    return found


@pytest.mark.parametrize("command", ["train", "submit"])
def test_ranks_of_one_host_listen_on_loopback(
    tmp_path: Path, glyph_shards: Path, command: str
) -> None:
    """Watches /proc during the run for listening stores and gloo pairs."""
    arguments = runs.overrides(tmp_path, glyph_shards, "x", schedule__max_steps=1)
    started = runs.start(command, *arguments, "launch.ranks_per_node=2")
    seen: set[tuple[str, int]] = set()
    while started.poll() is None:
        seen |= _listening(psutil.Process(started.pid))
        time.sleep(0.1)
    assert started.returncode == 0, started.communicate()[0]
    assert len(seen) > 1
    assert {address for address, _ in seen} == {"127.0.0.1"}


def test_ranks_of_several_hosts_listen_at_the_address_they_are_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """127.0.0.2 stands for the cluster's interface: Linux gives a machine all of 127.0.0.0/8."""
    port = free_port()
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "1")
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.2")
    monkeypatch.setenv("MASTER_PORT", str(port))
    limit = timedelta(seconds=60)
    served = []
    first = threading.Thread(target=lambda: served.append(store.meet(0, 2, limit)))
    first.start()
    joined = store.meet(1, 2, limit)
    first.join()
    assert joined is not None
    joined.set("key", "value")
    assert served[0].get("key") == b"value"
    own = {at for at in _listening(psutil.Process(os.getpid())) if at[1] == port}
    assert own == {("127.0.0.2", port)}


def test_an_address_of_another_machine_is_said() -> None:
    with pytest.raises(ConfigError, match=r"cannot listen at 192\.0\.2\.1 .*set MASTER_ADDR"):
        store.serve("192.0.2.1", 0, ranks=2, timeout=timedelta(seconds=1))
    with pytest.raises(ConfigError, match=r"MASTER_ADDR=no such host: "):
        store.own_address("no such host")


def test_a_name_that_is_loopback_here_only_is_not_taken_at_its_word(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answer = [(0, 0, 0, "", ("127.0.1.1", 0))]
    monkeypatch.setattr(store.socket, "getaddrinfo", lambda *_, **__: answer)
    assert store.own_address("node7") != "127.0.1.1" or not _has_a_route()
    assert store.own_address("localhost") == "127.0.1.1"


def _has_a_route() -> bool:
    return len(Path("/proc/net/route").read_text().splitlines()) > 1
