"""Recipes, overrides and profiles from elsewhere give a value or a one-line error."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_config, read_config
from pipeline.config.tree import RunConfig, flatten
from pipeline.errors import ConfigError
from slurm.errors import ClusterError
from slurm.profile import load_profile
from tests.fuzz import BOUNDED, VALUES, damaged, value_or_own_error

DEMO = (resources.files("pipeline") / "recipes" / "demo.yaml").read_bytes()
KEYS = sorted(key for key, _ in flatten(load_config("demo").model_dump(mode="json")))
PROFILE = b"""partition: gpu
time_min: 60
setup: [module load cuda]
srun_args: [--mpi=pmix]
retry: {max_faults: 2}
container: {image: x.sqsh, mounts: [/data]}
extra: {mail-type: END}
"""


@pytest.mark.slow
@BOUNDED
@given(damaged(DEMO))
def test_recipes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "r.yaml").write_bytes(content)
    value_or_own_error(lambda: load_config(tmp_path / "r.yaml"), ConfigError)
    (tmp_path / "config.yaml").write_bytes(content)
    value_or_own_error(lambda: read_config(tmp_path), ConfigError)


@BOUNDED
@given(st.sampled_from(KEYS), VALUES)
def test_values_of_fields(tmp_path: Path, key: str, value: object) -> None:
    text = yaml.safe_dump(value, width=10**9).removesuffix("...\n").rstrip("\n")
    found = value_or_own_error(lambda: load_config("demo", [f"{key}={text}"]), ConfigError)
    if isinstance(found, RunConfig):
        (tmp_path / "config.yaml").write_text(found.to_yaml())
        assert read_config(tmp_path) == found


@BOUNDED
@given(st.text(max_size=20) | st.sampled_from(KEYS).map(lambda key: f"{key}.x=1"))
def test_overrides(override: str) -> None:
    value_or_own_error(lambda: load_config("demo", [override]), ConfigError)


@BOUNDED
@given(damaged(PROFILE))
def test_profiles(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "p.yaml").write_bytes(content)
    value_or_own_error(lambda: load_profile(tmp_path / "p.yaml"), ClusterError)
