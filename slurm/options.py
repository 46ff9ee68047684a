"""Options of sbatch and srun that a profile may not set, in any spelling.

Both programs parse options with getopt_long: a long name may be abbreviated, and a short one may
carry its value (-o/dev/null) and follow flags (-uo/dev/null).
"""

from __future__ import annotations

import re

# We set these options of sbatch ourselves, or they would keep it from running the script.
_OWN_SBATCH = (
    "array", "dependency", "error", "job-name", "no-requeue", "nodes", "ntasks", "ntasks-per-node",
    "open-mode", "output", "parsable", "requeue", "signal", "test-only", "time", "wait", "wrap",
)  # fmt: skip
_CPUS = "set cpus_per_task: srun and sbatch must agree"
_LOGS = "logs are found by their names"
_RANKS = "ranks are counted by --nodes and --gpus-per-node"
_HANG = "ranks that wait for a dead one would hang"
_OWN_SRUN = {
    "--cpus-per-task": _CPUS,
    "--error": _LOGS,
    "--output": _LOGS,
    "--open-mode": "logs of a requeued job must go on, not start again",
    "--kill-on-bad-exit": _HANG,
    "--multi-prog": "all ranks run one program",
    "--nodes": "use --nodes of the command",
    "--ntasks": _RANKS,
    "--ntasks-per-node": _RANKS,
    "--test-only": "nothing would run",
}
_SHORT_SRUN = {
    "c": _CPUS,
    "e": _LOGS,
    "o": _LOGS,
    "K": _HANG,
    "N": "use --nodes of the command",
    "n": _RANKS,
}
# Short options of srun without a value, so that another short option may follow directly.
_FLAGS = "EHhklOqQsuvVXZ"
_NAME = re.compile(r"[a-z][a-z0-9]*([-_][a-z0-9]+)*")


def sbatch_refusal(key: str) -> str | None:
    """The reason why a profile may not set `#SBATCH --key`; None when it may."""
    if not _NAME.fullmatch(key):
        return "is not the long name of an option, such as mail-type"
    name = key.replace("_", "-")
    if any(own.startswith(name) for own in _OWN_SBATCH):
        return "is set by the system itself: remove it"
    return None


def srun_refusal(argument: str) -> str | None:
    """The reason why a profile may not pass an argument to srun; None when it may."""
    if not argument.startswith("-") or argument.strip("-") == "":
        return "would be taken for the program to run: write --option=value as one word"
    if argument.startswith("--"):
        name = argument.partition("=")[0]
        reasons = [why for own, why in _OWN_SRUN.items() if own.startswith(name)]
        return f"is not allowed: {reasons[0]}" if reasons else None
    letter = argument[1:].lstrip(_FLAGS)[:1]
    return f"is not allowed: {_SHORT_SRUN[letter]}" if letter in _SHORT_SRUN else None
