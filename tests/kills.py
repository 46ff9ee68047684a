"""How often the tests kill and damage, and processes that are killed with all they have started."""

from __future__ import annotations

import os
import time

import psutil


def kills(short: int) -> int:
    """`VMP_TEST_KILLS`, or `short`, which suits every run of the tests."""
    return int(os.environ.get("VMP_TEST_KILLS", short))


def wait_until_gone(session: int, timeout_s: float = 60) -> None:
    """Return once no process of a session lives; fail when one still does at the end."""
    deadline = time.monotonic() + timeout_s
    while left := _of_session(session):
        assert time.monotonic() < deadline, f"{left} live on"
        time.sleep(0.05)


def _of_session(session: int) -> list[str]:
    found = []
    for process in psutil.process_iter():
        try:
            if os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE:
                found.append(" ".join(process.cmdline()))
        except (ProcessLookupError, psutil.NoSuchProcess):
            continue
    return found
