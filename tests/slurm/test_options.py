"""Every spelling of an option that a profile must not set is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.errors import ClusterError
from slurm.executor import make_executor, submit
from slurm.job import CommandJob
from slurm.options import sbatch_refusal, srun_refusal
from slurm.profile import ClusterProfile, load_profile
from slurm.record import Resources


@pytest.mark.parametrize(
    "argument",
    [
        "-o/dev/null", "-o", "-uo/dev/null", "-lK0", "-K0", "-n4", "-c2", "-e/dev/null", "-N2",
        "--outpu=x", "--out", "--o=x", "--err=x", "--kill-on-bad=0", "--ntasks-per-n=3", "--multi",
        "bash", "--", "-", "",
    ],
)  # fmt: skip
def test_refused_to_srun(argument: str) -> None:
    assert srun_refusal(argument) is not None


@pytest.mark.parametrize(
    "argument",
    ["--mpi=pmix", "-pdebug", "-l", "--label", "--export=ALL", "--distribution=block", "-Jname",
     "--nodelist=a,b", "--cpu-bind=cores", "-wnode1"],
)  # fmt: skip
def test_granted_to_srun(argument: str) -> None:
    assert srun_refusal(argument) is None


@pytest.mark.parametrize(
    "key",
    ["wrap", "output", "outpu", "out", "o", "time", "nodes", "no_requeue", "no-req", "open_mode",
     "test-only", "array", "job_name", "a b", "x=y", "--wrap", "", "Wrap", "x\n#SBATCH --wrap"],
)  # fmt: skip
def test_refused_to_sbatch(key: str) -> None:
    assert sbatch_refusal(key) is not None


@pytest.mark.parametrize(
    "key", ["mail-type", "mail_user", "reservation", "nodelist", "gres", "licenses", "time-min"]
)
def test_granted_to_sbatch(key: str) -> None:
    assert sbatch_refusal(key) is None


@pytest.mark.parametrize(
    "text",
    [
        'partition: "gpu\\n#SBATCH --wrap=id"',
        'account: "a\\rb"',
        'extra: {mail-user: "a\\n#SBATCH --wrap=id"}',
        'extra: {"a\\nb": 1}',
        'srun_args: ["--x=a\\nb"]',
        'setup: ["true\\nexit 0"]',
        'container: {image: "x\\ny"}',
        'container: {image: x, mounts: ["/a\\n/b"]}',
        'qos: "a\\u2028b"',
        "partition: 'a\n\n  b'",
        "extra: {wrap: id}",
        "srun_args: [-o/dev/null]",
        "srun_args: [bash]",
        "a: !!timestamp x",
        "a: 2020-99-99",
        "a: !!int ''",
    ],
)
def test_a_profile_that_holds_more_than_it_seems(tmp_path: Path, text: str) -> None:
    (tmp_path / "p.yaml").write_text(text)
    with pytest.raises(ClusterError) as refused:
        load_profile(tmp_path / "p.yaml")
    assert str(refused.value).startswith(f"profile {tmp_path / 'p.yaml'}: ")
    assert str(refused.value).isprintable()


def test_job_files_are_not_written_by_everybody(tmp_path: Path) -> None:
    """Others may not write, whatever the umask, because loading a pickle runs code."""
    import os

    before = os.umask(0)
    try:
        executor = make_executor(
            "local",
            tmp_path / "logs",
            ClusterProfile(),
            Resources(),
            name="x",
            code=Path(__file__).parents[2],
        )
        submit(executor, CommandJob(("--help",), str(tmp_path))).results()
        assert os.umask(0) == 0
    finally:
        os.umask(before)
    made = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert {path.suffix for path in made} >= {".pkl", ".out"}
    assert [path for path in made if path.stat().st_mode & 0o002] == []
