"""Which checkpoints stay: the newest, the best, and every n-th."""

from __future__ import annotations

from pathlib import Path

from pipeline.checkpoint import layout
from pipeline.checkpoint.config import CheckpointConfig


def prune(root: Path, config: CheckpointConfig) -> list[Path]:
    """Delete what `config` does not keep; returns the deleted directories."""
    present = layout.committed(root)
    kept = set(present[-config.keep_last :])
    if config.keep_every_steps:
        kept |= {p for p in present if layout.step_of(p) % config.keep_every_steps == 0}
    if config.keep_best and (best := best_checkpoint(present)):
        kept.add(best)
    doomed = [path for path in present if path not in kept]
    for path in doomed:
        layout.delete(path)
    return doomed


def best_checkpoint(paths: list[Path]) -> Path | None:
    """The one with the highest validation top-1; the earlier of equals; None before any."""
    scored = [
        (layout.read_state(p).metrics.get("top1", -1.0), -layout.step_of(p), p) for p in paths
    ]
    scored = [entry for entry in scored if entry[0] >= 0]
    return max(scored)[2] if scored else None
