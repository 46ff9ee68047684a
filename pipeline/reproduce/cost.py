"""GPU hours of a stage: from a run's own step times, or from a throughput scaled by FLOPs."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from pathlib import Path

from model.config import ModelConfig
from model.flops import training_flops
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.rundir import read_heartbeats
from pipeline.rundir.metrics import read_metrics
from pipeline.training.schedule import Schedule


@dataclass(frozen=True)
class Speed:
    """Clips per second and GPU of a model in training."""

    clips_s: float
    model: ModelConfig
    source: str
    """Who measured it, and on which GPU."""

    def gpu_hours(self, config: RunConfig, samples: int) -> float:
        """Return the GPU hours of a run at the same FLOP/s, evaluation not counted."""
        clips = steps_of(config, samples) * config.batch.global_size * config.data.views
        times_the_work = training_flops(config.model) / training_flops(self.model)
        return clips * times_the_work / self.clips_s / 3600


def steps_of(config: RunConfig, samples: int) -> int:
    """Return the optimizer steps of a run on `samples` training clips.

    Raises ConfigError when the clips do not fill a batch.
    """
    steps_per_epoch = samples // config.batch.global_size
    if not steps_per_epoch:
        raise ConfigError(
            f"{config.name}: batch.global_size={config.batch.global_size} is more than the "
            f"{samples} clips of an epoch"
        )
    return Schedule(config.schedule, config.optim.lr, steps_per_epoch).total_steps


def measured_gpu_hours(run_dir: Path, config: RunConfig, samples: int) -> float | None:
    """Return the GPU hours of the whole run by its median step time; None before it has one."""
    times: list[float] = [row["step_s"] for row in read_metrics(run_dir) if "step_s" in row]
    ranks = len(read_heartbeats(run_dir))
    if not times or not ranks:
        return None
    return steps_of(config, samples) * statistics.median(times) * ranks / 3600
