"""Who may read and write what a run leaves behind."""

from __future__ import annotations

import os

_OTHERS_WRITE, _OTHERS_AND_GROUP = 0o002, 0o077


def set_umask(*, private: bool) -> None:
    """From now on this process, and what it starts, makes no file that everybody can write.

    With `private` nobody else can read one either. Whoever can write a job's pickle decides what
    the job does.
    """
    strictest = os.umask(_OTHERS_AND_GROUP)
    os.umask(strictest | (_OTHERS_AND_GROUP if private else _OTHERS_WRITE))
