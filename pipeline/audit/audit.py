"""The audit of a run: all checks, in the order in which a reader wants to know."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pipeline.audit.attempts import check_attempts, stretches
from pipeline.audit.checkpoints import check_checkpoints, check_configuration
from pipeline.audit.data import check_data
from pipeline.audit.evidence import gather
from pipeline.audit.result import Audit, Verdict
from pipeline.audit.samples import check_samples


def audit(run_dir: Path, places: Sequence[str] = (), *, quick: bool = False) -> Audit:
    """Compare what a run logged and committed with what configuration and data determine.

    Args:
        places: `data.train=DIR` and `data.val=DIR`, where the shards lie today.
        quick: do not read the bytes of the shards again.
    Raises ConfigError when there is nothing that could be compared, see `gather`.
    """
    evidence = gather(run_dir, places)
    attempts = stretches(evidence)
    data = check_data(evidence, quick=quick)
    # Other shards have another order, so a comparison with them would say nothing.
    shards = None if data.verdict is Verdict.NOT_JUDGED else evidence.train
    samples, uncommitted = check_samples(evidence, attempts, shards)
    config, state = evidence.config, evidence.newest.state
    epochs = None
    if shards is not None:
        epochs = round(state.step / (len(shards) // config.batch.global_size), 3)
    return Audit(
        run=str(run_dir),
        steps=state.step,
        global_batch=config.batch.global_size,
        epochs=epochs,
        seed=config.seed,
        data=str(config.data.train),
        data_digest=state.data_digest,
        skipped_steps=state.skipped_steps,
        left_out_steps=sum(step < state.step for step in evidence.left_out),
        uncommitted=uncommitted,
        stretches=attempts,
        checks=(
            samples,
            check_checkpoints(evidence, attempts),
            check_attempts(evidence),
            check_configuration(evidence),
            data,
        ),
    )
