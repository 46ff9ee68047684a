"""Files of the run directory are named in one place, and modules lie in rooms."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from pipeline.rundir import State, StopClass, paths

ROOT = Path(__file__).parents[3]
# A checkpoint has a configuration of its own, sharding jobs have logs, other files have locks.
ELSEWHERE = {paths.CONFIG_FILE, paths.LOGS, paths.CODE, paths.LOCK_FILE}
FILES = {value for name, value in vars(paths).items() if name.isupper() and type(value) is str}
STATES = {str(state) for state in State} | {str(kind) for kind in StopClass}


def modules() -> Iterator[Path]:
    for package in ("pipeline", "slurm"):
        for path in sorted((ROOT / package).rglob("*.py")):
            if path.parent != ROOT / "pipeline" / "rundir":
                yield path


def strings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_no_other_module_spells_the_name_of_a_file() -> None:
    found = {path: FILES.difference(ELSEWHERE).intersection(strings(path)) for path in modules()}
    assert {str(path.relative_to(ROOT)): names for path, names in found.items() if names} == {}


def test_no_other_module_spells_a_state_or_a_class_of_ends() -> None:
    found = {path: STATES.intersection(strings(path)) for path in modules()}
    assert {str(path.relative_to(ROOT)): names for path, names in found.items() if names} == {}


def test_few_modules_lie_outside_of_the_rooms() -> None:
    assert len(list((ROOT / "pipeline").glob("*.py"))) <= 12


def test_the_names_are_those_on_the_disks_of_our_users() -> None:
    assert {"status.json", "attempts.jsonl", "job.json", "COMMITTED", "checkpoints"} <= FILES
    assert paths.checkpoint_name(1234) == "step-00001234"
    assert paths.failure_file(Path("r"), 7) == Path("r/logs/failure-rank00007.json")
