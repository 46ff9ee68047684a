"""How far a run has come, and the return to where a checkpoint was."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.checkpoint.layout import RunState
from pipeline.checkpoint.load import FullState
from pipeline.errors import CheckpointError
from pipeline.training.engine import Engine
from pipeline.training.guard import NonFiniteGuard
from pipeline.training.spikes import SpikeWatch


@dataclass
class Progress:
    """The values that change as a run proceeds and that a checkpoint restores."""

    step: int = 0
    position: int = 0
    elapsed_s: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)
    """Metrics of the last evaluation."""
    evaluated_step: int = -1
    """Step of the last evaluation."""
    best_score: float = -1.0
    """Largest score of all evaluations so far: top-1 in [0, 1], or what the task names."""
    best_step: int = -1
    """Step of the evaluation that gave `best_score`."""
    saved_step: int = -1
    """Step of the newest checkpoint whose saving has begun."""

    def note_evaluation(
        self, metrics: dict[str, float], score: str, *, chooses: bool = True
    ) -> None:
        """Record the metrics, the same on every rank, of the weights at this step.

        With `chooses`, these weights become the best ones if no earlier had so high a `score`.
        """
        self.metrics = metrics
        self.evaluated_step = self.step
        if chooses and metrics[score] > self.best_score:
            self.best_score, self.best_step = metrics[score], self.step


def restore(
    engine: Engine,
    guard: NonFiniteGuard,
    spikes: SpikeWatch,
    path: Path,
    state: RunState,
    tensors: FullState,
) -> Progress:
    """Load the content of the checkpoint `path` and return its progress. Collective.

    Raises CheckpointError when its parameters are not those of the model.
    """
    if state.shapes != engine.state.shapes:
        raise CheckpointError(f"checkpoint {path}: its parameters are not those of this model")
    engine.state.load(tensors, state.adam_steps)
    engine.loss_scale.restore(state.loss_scale)
    guard.restore(state.skipped_steps, state.not_finite)
    spikes.restore(state.loss_history)
    return Progress(
        step=state.step,
        position=state.position,
        elapsed_s=state.elapsed_s,
        metrics=dict(state.metrics),
        evaluated_step=state.evaluated_step,
        best_score=state.best_top1,
        best_step=state.best_step,
        saved_step=state.step,
    )
