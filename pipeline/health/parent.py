"""Ranks that end with the launcher that has started them, even when it is killed alone."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1


def stop_with_parent() -> None:
    """Be asked to stop (SIGTERM) when the process that has started this one is gone.

    Without it, the ranks of a launcher that was killed would train on, holding the lock of the run,
    with nobody to tell.
    """
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it was faster
        os.kill(os.getpid(), signal.SIGTERM)
