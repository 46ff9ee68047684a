"""A list has one line per row and whole cells, on a terminal and in a pipe."""

from __future__ import annotations

import pytest

from pipeline.commands.table import print_table

HEADER = ["name", "state", "reason"]
REASON = "configuration: data.crop.scale[0] [bold]must[/bold] be " + "long " * 60 + "end"


def test_a_program_gets_one_line_a_row(capsys: pytest.CaptureFixture[str]) -> None:
    print_table(HEADER, [["a", "failed", REASON], ["b-with-a-long-name", "running", ""]])
    header, first, second = capsys.readouterr().out.splitlines()
    assert header.split() == HEADER
    assert first.split(maxsplit=2) == ["a", "failed", REASON]
    assert second.split() == ["b-with-a-long-name", "running"]
    assert header.index("state") == first.index("failed") == second.index("running")


def test_a_terminal_gets_the_same_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [["a", "failed", REASON], ["\u6620\u50cf", "running", "two\nlines"]]
    print_table(HEADER, rows)
    piped = capsys.readouterr().out
    monkeypatch.setenv("FORCE_COLOR", "1")  # as a terminal
    monkeypatch.setenv("COLUMNS", "60")
    print_table(HEADER, rows)
    assert capsys.readouterr().out == piped
    assert len(piped.splitlines()) == 3
