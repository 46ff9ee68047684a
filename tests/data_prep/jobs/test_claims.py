"""One owner per shard, and dead owners lose theirs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from data_prep.jobs.claims import Claims


def test_one_of_many_gets_it(tmp_path: Path) -> None:
    jobs = [Claims(tmp_path) for _ in range(16)]
    for number in range(20):
        with ThreadPoolExecutor(16) as pool:
            taken = list(pool.map(lambda job, n=number: job.take(f"s-{n}.tar"), jobs))
        assert sum(claim is not None for claim in taken) == 1


def test_released_claims_can_be_taken_again(tmp_path: Path) -> None:
    with Claims(tmp_path) as first, Claims(tmp_path) as second:
        claim = first.take("a.tar")
        assert claim is not None
        assert second.take("a.tar") is None
        first.release(claim)
        assert second.take("a.tar") is not None


def test_leaving_gives_everything_back(tmp_path: Path) -> None:
    with Claims(tmp_path) as first:
        assert first.take("a.tar") is not None
    with Claims(tmp_path) as second:
        assert second.take("a.tar") is not None


def test_a_dead_process_on_this_host_loses_its_claim_at_once(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from data_prep.jobs.claims import Claims\n"
        "assert Claims(Path(sys.argv[1])).take('a.tar'); os.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=False)
    with Claims(tmp_path) as heirs:
        claim = heirs.take("a.tar")
    assert claim is not None
    assert claim.generation == 1


def _on_another_host(tmp_path: Path) -> None:
    (path,) = tmp_path.glob("a.tar.*")
    identity = json.loads(path.read_text())
    path.write_text(json.dumps({**identity, "host": "far-away", "pid": 1}))


def test_another_host_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    absent = Claims(tmp_path)  # never entered: no thread touches its claim
    assert absent.take("a.tar") is not None
    _on_another_host(tmp_path)
    with Claims(tmp_path, stale_s=0.6) as heir:
        assert heir.take("a.tar") is None
        time.sleep(1.0)
        assert heir.take("a.tar") is not None


def test_a_living_owner_keeps_beating(tmp_path: Path) -> None:
    with Claims(tmp_path, stale_s=0.8) as owner, Claims(tmp_path, stale_s=0.8) as other:
        assert owner.take("a.tar") is not None
        _on_another_host(tmp_path)
        for _ in range(8):
            time.sleep(0.3)
            assert other.take("a.tar") is None


def test_stale_claims_are_inherited_by_one(tmp_path: Path) -> None:
    assert Claims(tmp_path).take("a.tar") is not None
    _on_another_host(tmp_path)
    past = time.time() - 1000
    os.utime(next(tmp_path.glob("a.tar.*")), (past, past))
    jobs = [Claims(tmp_path) for _ in range(16)]
    with ThreadPoolExecutor(16) as pool:
        taken = list(pool.map(lambda job: job.take("a.tar"), jobs))
    assert sum(claim is not None for claim in taken) == 1


def test_a_claim_cut_short_is_judged_by_its_touches(tmp_path: Path) -> None:
    assert Claims(tmp_path).take("a.tar") is not None
    (path,) = tmp_path.glob("a.tar.*")
    path.write_text("")
    with Claims(tmp_path) as heir:
        assert heir.take("a.tar") is None
        past = time.time() - 1000
        os.utime(path, (past, past))
        assert heir.take("a.tar") is not None


def _identity(tmp_path: Path, **changed: object) -> None:
    (path,) = tmp_path.glob("a.tar.*")
    path.write_text(json.dumps({**json.loads(path.read_text()), **changed}))


def test_owners_are_told_apart_without_the_wall_clock(tmp_path: Path) -> None:
    """The wall clock may be stepped; the start of a process in ticks since boot is not."""
    owner = Claims(tmp_path)
    assert owner.take("a.tar") is not None
    (path,) = tmp_path.glob("a.tar.*")
    found = json.loads(path.read_text())
    ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    assert (found["pid"], found["started"]) == (os.getpid(), ticks)
    _identity(tmp_path, started=ticks + 1)
    with Claims(tmp_path) as heir:
        assert heir.take("a.tar") is not None


def test_a_zombie_owns_nothing(tmp_path: Path) -> None:
    """Its parent may wait for something else, or be the first process of a container."""
    take = "import sys; from pathlib import Path; from data_prep.jobs.claims import Claims; "
    take += "Claims(Path(sys.argv[1])).take('a.tar')"
    owner = subprocess.Popen([sys.executable, "-c", take, str(tmp_path)])
    os.waitid(os.P_PID, owner.pid, os.WEXITED | os.WNOWAIT)
    with Claims(tmp_path) as heir:
        assert list(tmp_path.glob("a.tar.*"))
        assert heir.take("a.tar") is not None
    assert owner.wait() == 0


def test_another_boot_or_container_is_judged_by_its_heartbeat(tmp_path: Path) -> None:
    for field in ("boot", "namespace"):
        directory = tmp_path / field
        directory.mkdir()
        assert Claims(directory).take("a.tar") is not None
        _identity(directory, **{field: "another"}, pid=2**22 + 1)
        with Claims(directory) as heir:
            assert heir.take("a.tar") is None


def test_touches_from_the_future_do_not_keep_a_claim(tmp_path: Path) -> None:
    """The file server's clock was set back; its dead owner must not hold the shard until then."""
    assert Claims(tmp_path).take("a.tar") is not None
    _on_another_host(tmp_path)
    future = time.time() + 3600
    os.utime(next(tmp_path.glob("a.tar.*")), (future, future))
    with Claims(tmp_path, stale_s=0.4) as heir:
        assert heir.take("a.tar") is None
        time.sleep(0.6)
        assert heir.take("a.tar") is not None


def test_a_claim_that_was_taken_over_is_no_longer_held(tmp_path: Path) -> None:
    suspended = Claims(tmp_path)
    claim = suspended.take("a.tar")
    assert claim is not None
    assert suspended.holds(claim)
    _on_another_host(tmp_path)
    past = time.time() - 1000
    os.utime(next(tmp_path.glob("a.tar.*")), (past, past))
    with Claims(tmp_path) as heir:
        assert heir.take("a.tar") is not None
        assert not suspended.holds(claim)
