"""The attempts of a run as its starts tell them, and whether they fit its checkpoints."""

from __future__ import annotations

from itertools import pairwise

from pipeline.audit.evidence import Evidence
from pipeline.audit.result import Check, Stretch


def stretches(evidence: Evidence) -> tuple[Stretch, ...]:
    """Return which attempt trained which committed steps; together they cover all of them.

    An attempt that began at step s replaces all that attempts before it did from s on.
    """
    found: list[Stretch] = []
    steps = evidence.steps
    if not evidence.starts or evidence.starts[0].step > 0:
        # The run, or its beginning, is older than the record of starts.
        found.append(
            Stretch(
                first_step=0, end_step=steps, world_size=None, micro_batch=None, logs_samples=None
            )
        )
    for start in evidence.starts:
        found = [
            stretch.model_copy(
                update={"end_step": max(stretch.first_step, min(stretch.end_step, start.step))}
            )
            for stretch in found
        ]
        found.append(
            Stretch(
                first_step=start.step,
                end_step=max(start.step, steps),
                world_size=start.world_size,
                micro_batch=start.micro_batch,
                logs_samples=start.logs_samples,
                attempt=start.attempt,
                discarded=start.discarded,
            )
        )
    return tuple(found)


def check_attempts(evidence: Evidence) -> Check:
    """Compare starts with ends: an attempt may only begin at a step that was committed before."""
    faults = []
    ends = {f"{end.job_id}.{end.restart}": end for end in evidence.attempts}
    for before, after in pairwise(evidence.starts):
        end = ends.get(before.attempt)
        if end is not None and after.step > max(end.step, 0):
            faults.append(
                f"an attempt began at step {after.step}, but attempt {before.attempt} before it "
                f"had ended with step {end.step} as its newest checkpoint"
            )
    beyond = [start for start in evidence.starts if start.step > evidence.steps]
    if beyond:
        faults.append(
            f"an attempt began at step {beyond[0].step}, but the newest checkpoint is of step "
            f"{evidence.steps}"
        )
    discarded = sum(len(start.discarded) for start in evidence.starts)
    detail = f"{len(evidence.starts)} starts on record; {discarded} discarded steps accounted for"
    if not evidence.starts:
        detail = "no start is on record: the run is older than that record"
    return Check(name="attempts", detail=detail, faults=tuple(faults))
