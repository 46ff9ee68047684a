"""Decodes unchecked files in a process of its own, so that a crash or a hang costs one file.

`data_prep.jobs.pool` starts it as
`python -m data_prep.jobs.child FD MEMORY_BYTES PROCESSOR_S SUPERVISOR_PID`.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
from multiprocessing.connection import Connection

import av.logging

from data_prep.errors import MachineTrouble, is_of_machine
from data_prep.video.clip import ClipRequest, PreparedClip, ProbeRequest, RejectedClip, Trouble
from data_prep.video.prepare import prepare_clip
from data_prep.video.probe import probe_clip

_PR_SET_PDEATHSIG = 1
READY = "ready"
"""The first message of a process that has started."""


def main() -> None:
    descriptor, memory_bytes = int(sys.argv[1]), int(sys.argv[2])
    processor_s, supervisor_pid = float(sys.argv[3]), int(sys.argv[4])
    # A hanging decoder must not outlive its supervisor, even one that was killed before this call.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != supervisor_pid:
        return
    # The terminal sends Ctrl-C to the whole group, but only the supervisor decides what follows.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    limit = _virtual_bytes() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    av.logging.set_level(av.logging.PANIC)
    with Connection(descriptor) as supervisor:
        supervisor.send(READY)
        while True:
            try:
                request = supervisor.recv()
            except EOFError:
                return
            # SIGPROF ends the process by its own processor time, whatever the load of the machine.
            signal.setitimer(signal.ITIMER_PROF, processor_s)
            answer = _answer(request)
            signal.setitimer(signal.ITIMER_PROF, 0)
            supervisor.send(answer)


def _answer(request: ClipRequest | ProbeRequest) -> PreparedClip | RejectedClip | Trouble:
    try:
        if isinstance(request, ProbeRequest):
            return probe_clip(request)
        return prepare_clip(request)
    except MachineTrouble as error:
        return Trouble(str(error))
    except Exception as error:  # a decoder can raise anything for a file that it does not know
        if isinstance(error, OSError) and is_of_machine(error):
            return Trouble(f"{request.path!r}: {error}")
        reason = str(error).partition("\n")[0]
        return RejectedClip("unexpected", f"{type(error).__name__}: {reason}")


def _virtual_bytes() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[0]) * os.sysconf("SC_PAGE_SIZE")


if __name__ == "__main__":
    main()
