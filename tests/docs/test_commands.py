"""Every `vmp` command that a document shows exists, with its options, recipe and fields."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer

from pipeline.cli import app
from pipeline.config import field_names, shipped_recipes
from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
_FENCED = re.compile(r"^ *```(?:sh|bash)?\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
_INLINE = re.compile(r"(?<!`)`(vmp [^`]+)`(?!`)")
_TAKES_RECIPE = ("train", "submit", "plan", "config")
_PLACEHOLDER = re.compile(r"[A-Z][A-Z_]*")


def shown(page: Path) -> list[list[str]]:
    """The words of each `vmp` command in a page, without comments."""
    text = page.read_text()
    lines = [
        line.strip()
        for block in _FENCED.findall(text)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    lines += [" ".join(found.split()) for found in _INLINE.findall(text)]
    words = [shlex.split(line, comments=True) for line in lines if " vmp " in f" {line}"]
    return [each[1:] for each in words if each and each[0].removeprefix(".venv/bin/") == "vmp"]


def fault(words: list[str]) -> str | None:
    """What is wrong with a command; None when nothing is. `...` stands for anything."""
    command = typer.main.get_command(app)
    rest = list(words)
    while hasattr(command, "commands") and rest and not rest[0].startswith("-"):
        if rest[0] in ("...", "…") or _PLACEHOLDER.fullmatch(rest[0]):
            return None
        found = command.commands.get(name := rest.pop(0))
        if found is None:
            return f"there is no command {name!r}"
        command = found
    known = {option for each in command.params for option in each.opts + each.secondary_opts}
    for word in rest:
        if word.startswith("-") and word.split("=")[0] not in known | {"--help"}:
            return f"there is no option {word}"
    return fault_in_recipe(rest) if command.name in _TAKES_RECIPE else None


def fault_in_recipe(words: list[str]) -> str | None:
    if not words or words[0].startswith("-"):
        return None
    recipe = words[0]
    is_own = recipe.endswith(".yaml") or _PLACEHOLDER.fullmatch(recipe) or recipe.startswith("...")
    if not is_own and recipe not in shipped_recipes():
        return f"there is no recipe {recipe!r}"
    fields = set(field_names())
    for word in words[1:]:
        key = word.split("=")[0]
        if (
            "=" in word
            and not word.startswith("-")
            and key not in (*fields, "model.preset", "[a.b")
        ):
            return f"there is no field {key!r}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_shown_commands_exist(page: Path) -> None:
    faults = {" ".join(words): fault(words) for words in shown(page)}
    assert {line: what for line, what in faults.items() if what is not None} == {}


def test_a_wrong_command_is_found() -> None:
    assert fault(["trian", "demo"]) == "there is no command 'trian'"
    assert fault(["train", "demo", "--dry"]) == "there is no option --dry"
    assert fault(["train", "k400"]) == "there is no recipe 'k400'"
    assert fault(["train", "demo", "optim.rl=1"]) == "there is no field 'optim.rl'"
    assert fault(["train", "mine.yaml", "optim.lr=1"]) is None
    assert sum(len(shown(page)) for page in PAGES) > 40
