"""The typed configuration of a run: recipes, dotted overrides, and errors with dotted paths."""

from pipeline.config.load import build_config, load_config
from pipeline.config.origins import value_origins
from pipeline.config.overrides import apply_overrides
from pipeline.config.recipe import shipped_recipes
from pipeline.config.stored import in_todays_words, read_config
from pipeline.config.tree import RunConfig, config_difference, field_names, flatten, refusal

__all__ = [
    "RunConfig",
    "apply_overrides",
    "build_config",
    "config_difference",
    "field_names",
    "flatten",
    "in_todays_words",
    "load_config",
    "read_config",
    "refusal",
    "shipped_recipes",
    "value_origins",
]
