"""A machine that fails ends any command with one line and status 1; bugs keep their traceback."""

from __future__ import annotations

import errno
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from data_prep.errors import MachineTrouble
from pipeline import cli, exits


@pytest.mark.slow
def test_the_demo_on_a_disk_that_takes_no_more_is_one_line(tmp_path: Path) -> None:
    """A limit on the size of files stands for the full disk: it fails at the same writes."""
    ran = subprocess.run(
        [sys.executable, "-m", "pipeline.cli", "demo", "--root", tmp_path, "--train-clips", "32"],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000)),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == exits.FAILED, ran.stderr
    *_, last = ran.stderr.splitlines()
    assert last.startswith("error: [Errno 27] File too large: ")
    assert last.endswith("; run the same command again once the machine has recovered")
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (MachineTrouble("x cannot be read"), "error: x cannot be read\n"),
        (
            OSError(errno.EIO, "I/O error", "a\nb"),
            "error: [Errno 5] I/O error: 'a\\nb'; run the ",
        ),
    ],
)
def test_every_command_tells_it_in_one_line(
    error: Exception, line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "app", lambda: _raise(error))
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == exits.FAILED
    told = capsys.readouterr().err
    assert told.startswith(line)
    assert told.count("\n") == 1


@pytest.mark.parametrize(
    "bug", [KeyError("x"), FileNotFoundError(errno.ENOENT, "no"), ValueError()]
)
def test_what_is_no_trouble_of_the_machine_stays_an_error(
    bug: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "app", lambda: _raise(bug))
    with pytest.raises(type(bug)):
        cli.main()


def _raise(error: Exception) -> None:
    raise error
