"""Profiles that would lose a run are refused, with the reason."""

from __future__ import annotations

from pathlib import Path

import pytest

from slurm.errors import ClusterError
from slurm.profile import load_profile


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("partitoin: gpu", "partitoin: unknown key; known are partition, account"),
        ("time_min: 3\ngrace_s: 90", "time_min=3 leaves no room for grace_s=90"),
        ("grace_s: 5", "grace_s=5 is too short for a step, a save and the requeueing"),
        ("srun_args: [--cpus-per-task=2]", "--cpus-per-task is not allowed: set cpus_per_task"),
        ("srun_args: [--kill-on-bad-exit=0]", "ranks that wait for a dead one would hang"),
        ("extra: {no_requeue: true}", "extra.no_requeue is set by the system itself"),
        ("extra: {time: 5}", "extra.time is set by the system itself"),
        ("setup: [set -e]", "would end the batch script before it can requeue the run"),
        ("retry: {max_faults: -1}", "retry.max_faults: Input should be greater than or equal to 0"),
        ("container: {runtime: docker, image: x}", "container.runtime: Input should be"),
        ("a: [", "not YAML"),
    ],
)
def test_an_unsafe_profile_is_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "profile.yaml"
    path.write_text(text)
    with pytest.raises(ClusterError) as refusal:
        load_profile(path)
    assert message in str(refusal.value)
    assert str(path) in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_a_profile_that_is_no_text_is_said(tmp_path: Path) -> None:
    path = tmp_path / "profile.yaml"
    path.write_bytes(b"partition: \xff\n")
    with pytest.raises(ClusterError, match=r"profile\.yaml: not YAML: .* can't decode byte"):
        load_profile(path)


def test_a_missing_profile_is_said(tmp_path: Path) -> None:
    with pytest.raises(ClusterError, match="cannot be read: No such file"):
        load_profile(tmp_path / "nowhere.yaml")
