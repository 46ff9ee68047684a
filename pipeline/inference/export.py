"""Export of a run's weights."""

from __future__ import annotations

from pathlib import Path

from model import save_model
from pipeline.checkpoint.source import locate
from pipeline.checkpoint.trained import checkpoint_config, load_backbone
from pipeline.inference.exported import Card, check_suffix, write_exported
from pipeline.inference.trained import open_trained


def export_weights(run: Path, out: Path, *, raw: bool = False) -> Path:
    """Write the weights that `locate` finds as .safetensors or .pth, by the suffix of `out`.

    Heads that only training uses are left out. Masked pre-training leaves a backbone without a
    classification head, which `init_from` and `task.teacher.path` take.
    With `raw`, write the last weights even if the run kept their moving average.
    Raises CheckpointError, ConfigError or WeightsError.
    """
    check_suffix(out)
    checkpoint = locate(run)
    if checkpoint.is_dir():
        config = checkpoint_config(checkpoint, ["eval.use_ema=false"] if raw else [])
        if config.task.kind == "masked":
            save_model(out, load_backbone(checkpoint, config))
            return out
    trained = open_trained(run, raw=raw)
    write_exported(out, trained.model, Card.of(trained.config, trained.classes))
    return out
