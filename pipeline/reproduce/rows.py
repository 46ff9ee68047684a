"""The rows of the papers' tables, as `rows.yaml` beside this module states them."""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from model.invalid import did_you_mean, first_problem
from pipeline.config.yaml_text import parse_yaml
from pipeline.errors import ConfigError

Percent = Annotated[float, Field(ge=0, le=100)]


class _Facts(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Source(_Facts):
    """Where a claim stands: the paper, its version, and the table or section."""

    where: str
    note: str = ""


class Claim(_Facts):
    """A published top-1 accuracy, as a figure or as points above another row."""

    source: str
    top1: Percent | None = None
    gain: tuple[float, float] | None = None
    """Smallest and largest gain over the row `over`, in points."""
    over: str | None = None
    views: str = ""
    """Test views that the source states where they are not those of the recipe."""

    @model_validator(mode="after")
    def _is_one_of_both(self) -> Claim:
        if (self.top1 is None) == (self.gain is None) or (self.gain is None) != (self.over is None):
            raise ValueError("state either top1, or gain and over")
        return self


class Row(_Facts):
    """A row of a table."""

    recipes: tuple[str, ...] = Field(min_length=1)
    """The recipes whose accuracy is claimed; of several, as for folds, the mean is."""
    claims: tuple[Claim, ...] = ()
    note: str = ""


class DatasetFacts(_Facts):
    """A data set as its published lists state it."""

    title: str
    classes: int
    splits: dict[str, int]
    """Number of videos per split."""
    counted: str
    """Whose lists these are."""


class Throughput(_Facts):
    """A published training speed, from which the cost of other models is scaled by FLOPs."""

    gpu: str
    clips_s: float = Field(gt=0)
    """Clips per second and GPU; every augmented view counts."""
    recipe: str
    where: str


class Tables(_Facts):
    """All that `rows.yaml` says."""

    sources: dict[str, Source]
    datasets: dict[str, DatasetFacts]
    throughput: Throughput
    rows: dict[str, Row]

    def row(self, name: str) -> Row:
        """Return a row. Raises ConfigError, which names the closest one, when there is none."""
        if name not in self.rows:
            hint = did_you_mean(name, self.rows, "rows are")
            raise ConfigError(f"unknown row '{name}': {hint} (`vmp reproduce` lists all rows)")
        return self.rows[name]


@cache
def load_tables() -> Tables:
    """Return the rows that this package ships."""
    return parse_tables(read_data("rows.yaml"), "rows.yaml")


def parse_tables(raw: Any, where: str) -> Tables:
    """Validate rows as read from YAML. Raises ConfigError, which begins with `where`."""
    try:
        return Tables.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(f"{where}: {first_problem(error, Tables)}") from error


def read_data(name: str) -> Any:
    """Return the content of a YAML file beside this module."""
    return parse_yaml((resources.files("pipeline.reproduce") / name).read_text("utf-8"), name)
