"""Weights of a run to give away."""

from __future__ import annotations

from pathlib import Path

from model import save_model
from pipeline.checkpoint.trained import checkpoint_config, find_checkpoint, load_trained


def export_weights(run: Path, out: Path, *, raw: bool = False) -> Path:
    """Write a run's newest intact checkpoint as safetensors with its ModelConfig.

    `raw`: the weights themselves where the run kept their moving average.
    """
    checkpoint = find_checkpoint(run)
    config = checkpoint_config(checkpoint, [f"eval.use_ema={not raw}"])
    save_model(out, load_trained(checkpoint, config))
    return out
