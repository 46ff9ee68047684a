"""Whether the checkpoints of a run are intact and agree with one another and with the attempts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from pipeline.audit.evidence import Checkpoint, Evidence
from pipeline.audit.result import Check, Stretch
from pipeline.checkpoint import layout
from pipeline.config import config_difference


def check_checkpoints(evidence: Evidence, stretches: Sequence[Stretch]) -> Check:
    """Compare every committed checkpoint with its marker, its name and its counters."""
    faults = list(evidence.damaged)
    for checkpoint in evidence.checkpoints:
        faults += _counters(checkpoint, evidence, stretches)
    names = ", ".join(checkpoint.path.name for checkpoint in evidence.checkpoints)
    detail = f"files and counters of {names}"
    return Check(name="checkpoint files", detail=detail, faults=tuple(faults))


def _counters(
    checkpoint: Checkpoint, evidence: Evidence, stretches: Sequence[Stretch]
) -> Iterator[str]:
    state, where = checkpoint.state, f"checkpoint {checkpoint.path}"
    global_batch = evidence.config.batch.global_size
    left_out = sum(step < state.step for step in evidence.left_out)
    if state.step != layout.step_of(checkpoint.path):
        yield f"{where}: its state says step {state.step}"
    if state.position != state.step * global_batch:
        yield (
            f"{where}: its position is {state.position}, but {state.step} steps of {global_batch} "
            f"samples end at {state.step * global_batch}"
        )
    if state.adam_steps + state.skipped_steps + left_out != state.step:
        others = f" and {left_out} left-out" if left_out else ""
        yield (
            f"{where}: {state.adam_steps} updates of the weights and {state.skipped_steps} skipped"
            f"{others} steps do not make {state.step} steps"
        )
    for stretch in stretches:
        if not stretch.first_step < state.step <= stretch.end_step:
            continue
        if stretch.world_size not in (None, state.world_size):
            yield (
                f"{where}: {state.world_size} ranks committed it, but {stretch.world_size} ranks "
                f"trained step {state.step - 1}"
            )


def check_configuration(evidence: Evidence) -> Check:
    """Compare the configurations of all checkpoints and of the run directory."""
    faults = []
    others = [(str(item.path), item.config) for item in evidence.checkpoints[:-1]]
    for where, config in [*others, (str(evidence.run_dir), evidence.stored)]:
        if difference := config_difference(evidence.newest.config, config):
            listed = "; ".join(map(str, difference))
            faults.append(f"{where}: another configuration than {evidence.newest.path}: {listed}")
    detail = "the fields that identify the run, in all checkpoints and the run directory"
    return Check(name="settings", detail=detail, faults=tuple(faults))
