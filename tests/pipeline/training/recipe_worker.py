"""Trains each of the given runs to its end, one after another, in one process of one rank.

`python -m tests.pipeline.training.recipe_worker` reads a JSON list of [recipe, overrides] and
writes a JSON object: recipe -> [steps, losses of the steps, top-1].
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack

from pipeline.config import load_config
from pipeline.health.pulse import Pulse
from pipeline.health.stopping import Stopper
from pipeline.prepare import prepare_run
from pipeline.rundir.metrics import read_metrics
from pipeline.training import distributed
from pipeline.training.assemble import assemble
from pipeline.training.train import summary_of


def main() -> None:
    # DeepSpeed keeps its groups for the life of a process, so all runs share one world.
    world = distributed.join(timeout_s=60)
    results = {}
    for recipe, overrides in json.load(sys.stdin):
        config = load_config(recipe, overrides)
        run_dir = prepare_run(config)
        with Stopper(config.stop) as stopper, ExitStack() as stack:
            trainer = assemble(config, run_dir, world, stopper, Pulse(0), stack)
            trainer.fit()
            summary = summary_of(trainer)
        losses = [row["loss"] for row in read_metrics(run_dir) if row["kind"] == "train"]
        results[recipe] = [summary.steps, losses, summary.top1]
    distributed.leave()
    json.dump(results, sys.stdout)


if __name__ == "__main__":
    main()
