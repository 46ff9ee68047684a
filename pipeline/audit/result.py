"""The result of an audit: what was checked, what was found, and the verdict that follows."""

from __future__ import annotations

from enum import StrEnum

from pydantic import BaseModel, ConfigDict, computed_field

from pipeline.rundir import exits


class Verdict(StrEnum):
    """Verdicts of an audit and of each of its checks."""

    PROVEN = "proven"
    DISPROVEN = "disproven"
    NOT_JUDGED = "cannot be judged"

    @property
    def exit_status(self) -> int:
        statuses = {Verdict.PROVEN: exits.DONE, Verdict.DISPROVEN: exits.FAILED}
        return statuses.get(self, exits.BAD_INPUT)


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Check(_Frozen):
    """One check and what it found."""

    name: str
    detail: str
    """What was compared, with its amount."""
    faults: tuple[str, ...] = ()
    """Deviations, the first one first."""
    doubts: tuple[str, ...] = ()
    """Reasons why some of it cannot be judged."""

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        if self.faults:
            return Verdict.DISPROVEN
        return Verdict.NOT_JUDGED if self.doubts else Verdict.PROVEN


class Stretch(_Frozen):
    """The committed steps that one attempt trained; none if it died too soon."""

    first_step: int
    end_step: int
    """One past the last step."""
    world_size: int | None
    """Number of ranks; None for attempts that no start was recorded of."""
    micro_batch: int | None
    logs_samples: bool | None
    attempt: str = ""
    """Id of the SLURM attempt; empty elsewhere."""
    discarded: dict[int, int] = {}
    """Step -> samples that the attempt before had logged for it, which no checkpoint keeps."""

    @property
    def steps(self) -> range:
        return range(self.first_step, self.end_step)


class Audit(_Frozen):
    """The report about one run."""

    run: str
    steps: int
    """Committed optimizer steps, skipped ones included."""
    global_batch: int
    epochs: float | None
    """Passes over the training split; None without the shards."""
    seed: int
    data: str
    """Location of the training shards."""
    data_digest: str
    """Digest of the training and validation samples, as the newest checkpoint records it."""
    skipped_steps: int
    """Steps whose batch was read and whose gradient was thrown away."""
    left_out_steps: int = 0
    """Steps whose batch is not trained on after a rollback, as rollbacks.jsonl lists them."""
    uncommitted: dict[int, int]
    """Step -> samples in the log for it beyond the newest checkpoint."""
    stretches: tuple[Stretch, ...]
    checks: tuple[Check, ...]

    @computed_field  # type: ignore[prop-decorator]
    @property
    def verdict(self) -> Verdict:
        verdicts = {check.verdict for check in self.checks}
        for worst in (Verdict.DISPROVEN, Verdict.NOT_JUDGED):
            if worst in verdicts:
                return worst
        return Verdict.PROVEN

    @computed_field  # type: ignore[prop-decorator]
    @property
    def reason(self) -> str:
        """The first deviation, else the first doubt, else what is proven."""
        for found in ("faults", "doubts"):
            for check in self.checks:
                for text in getattr(check, found):
                    return str(text)
        steps = f"{self.steps - self.left_out_steps:,}"
        but = f"; {self.left_out_steps:,} steps are left out" if self.left_out_steps else ""
        return (
            f"each of {steps} committed steps saw exactly the {self.global_batch:,} samples "
            f"of its global batch{but}"
        )
