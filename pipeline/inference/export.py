"""Export of a run's weights."""

from __future__ import annotations

from pathlib import Path

from pipeline.inference.exported import Card, check_suffix, write_exported
from pipeline.inference.trained import open_trained


def export_weights(run: Path, out: Path, *, raw: bool = False) -> Path:
    """Write the weights that `locate` finds as .safetensors or .pth, by the suffix of `out`.

    With `raw`, write the last weights even if the run kept their moving average.
    Raises CheckpointError, ConfigError or WeightsError.
    """
    check_suffix(out)
    trained = open_trained(run, raw=raw)
    write_exported(out, trained.model, Card.of(trained.config, trained.classes))
    return out
