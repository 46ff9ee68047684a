"""The attempts of a run: each is one stay of its ranks on the machines."""

from __future__ import annotations

import os


def attempt_id() -> str:
    """Tells this attempt of a SLURM job from earlier ones; set by `slurm.job`, empty elsewhere."""
    return os.environ.get("VMP_ATTEMPT", "")
