"""`vmp config` shows what the declarations say, and every declaration says something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pydantic import BaseModel

from model.invalid import section_type, variants
from pipeline.commands.config import print_config, type_text
from pipeline.config import RunConfig, load_config
from pipeline.errors import ConfigError


def _lines(section: str, capsys: pytest.CaptureFixture[str]) -> dict[str, list[str]]:
    print_config(load_config("demo"), section)
    shown = [line.split() for line in capsys.readouterr().out.splitlines()]
    return {words[0]: words[1:] for words in shown if words}


def test_a_section_shows_type_value_default_and_meaning(
    capsys: pytest.CaptureFixture[str],
) -> None:
    lines = _lines("optim", capsys)
    assert lines["lr"][:5] == ["float,", ">", "0", "0.003", "0.0008"]
    assert "Peak" in lines["lr"]
    assert lines["clip_grad"][:7] == ["float", "|", "null,", ">", "0", "1.0", "null"]


def test_what_may_change_on_resume_is_marked(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"global_size", "max_micro*"} <= _lines("batch", capsys).keys()
    assert {"every_steps*", "keep_last*"} <= _lines("checkpoint", capsys).keys()


def test_sections_within_sections(capsys: pytest.CaptureFixture[str]) -> None:
    assert _lines("data.crop", capsys)["kind"][:7] == [
        *("random_resized", "|", "random", "|", "none"),
        *("none", "random_resized"),
    ]
    assert "data.mix:" in _lines("data", capsys)


def test_all_sections_without_one_named(capsys: pytest.CaptureFixture[str]) -> None:
    print_config(load_config("demo"), None)
    out = capsys.readouterr().out
    assert all(f"\n{section}: " in out for section in ("model", "data.mix", "optim", "launch"))


def test_an_unknown_section_names_the_closest() -> None:
    with pytest.raises(ConfigError, match="no section 'optm': did you mean 'optim'"):
        print_config(load_config("demo"), "optm")


def test_a_type_within_a_union_is_named() -> None:
    field = type(load_config("demo").model).model_fields["activation_checkpointing"]
    assert type_text(field) == "none | full | int"


def _undocumented(node: type[BaseModel], path: str = "") -> Iterator[str]:
    for name, field in node.model_fields.items():
        one = section_type(node, name)
        sections = [one] if one is not None else list(variants(node, name).values())
        if not sections and not field.description:
            yield path + name
        for section in sections:
            if section.__doc__ is None:
                yield path + name
            yield from _undocumented(section, f"{path}{name}.")


def test_every_field_and_section_has_a_docstring() -> None:
    assert list(_undocumented(RunConfig)) == []
