"""Text from elsewhere is shown on a terminal and never interpreted."""

from __future__ import annotations

import logging

import pytest

from pipeline.terminal import SafeFormatter, one_line, printable, say


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b[2Jgone", r"\x1b[2Jgone"),
        ("\x9b31m", r"\x9b31m"),
        ("a\rb", r"a\rb"),
        ("bell\a", r"bell\x07"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("\udcff", r"\udcff"),
        ("\u2028", r"\u2028"),
        ("Schwünge 滑り台 🛝\tok\n", "Schwünge 滑り台 🛝\tok\n"),
    ],
)
def test_controls_are_written_out(text: str, shown: str) -> None:
    assert printable(text) == shown


def test_one_line_is_one_line() -> None:
    assert one_line("a\nerror: b\tc") == r"a\nerror: b c"


def test_say_and_the_log_show_no_secrets_and_no_controls(
    capsys: pytest.CaptureFixture[str],
) -> None:
    text = "\x1b]0;title\a https://me:pw@host/"
    say(text)
    say(text, err=True, nl=False)
    out, err = capsys.readouterr()
    assert out == r"\x1b]0;title\x07 https://***@host/" + "\n"
    assert err == r"\x1b]0;title\x07 https://***@host/"
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
    assert SafeFormatter("%(message)s").format(record) == err
