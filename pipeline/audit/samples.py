"""Whether the sample logs hold, step by step and rank by rank, the samples of the global order."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path

from pipeline.audit.evidence import Evidence
from pipeline.audit.result import Check, Stretch
from pipeline.data.errors import DataError
from pipeline.data.order import ElasticBatches
from pipeline.data.shards import Shards
from pipeline.rundir.paths import LOGS, of_all_ranks, rank_of, samples_file
from pipeline.rundir.samples import steps_of_rank

_NAME = "sample log"
_ENOUGH_FAULTS = 20


def check_samples(
    evidence: Evidence, stretches: Sequence[Stretch], shards: Shards | None
) -> tuple[Check, dict[int, int]]:
    """Compare the sample logs with the order that configuration and manifest determine.

    Where the number of ranks is on record, every rank's file must hold its own samples in their
    order. Elsewhere the files together must hold those of the global batch. `shards` are those that
    the run has trained on, None if they are not at hand.
    Returns the check, and step -> number of samples logged beyond the newest checkpoint.
    """
    paths = of_all_ranks(evidence.run_dir, samples_file(evidence.run_dir, 0))
    if shards is None:
        doubt = "the order follows from the shards of the run, which are not at hand"
        return Check(name=_NAME, detail="", doubts=(doubt,)), {}
    if not paths:
        doubt = f"{evidence.run_dir / LOGS}: no sample log; train with log_samples=true"
        return Check(name=_NAME, detail="", doubts=(doubt,)), {}
    logs = [_RankLog(path) for path in paths]
    comparison = _Comparison(evidence, shards, logs)
    for stretch in stretches:
        comparison.add(stretch)
    beyond = comparison.finish()
    return comparison.check(), beyond


class _RankLog:
    """One rank's file, read step by step."""

    def __init__(self, path: Path) -> None:
        self.rank = rank_of(path)
        self._steps = steps_of_rank(path)
        self._next = next(self._steps, None)

    def take(self, step: int) -> tuple[list[int], list[str]]:
        """Return steps before `step` that come too late in the file, and the keys of `step`."""
        late, keys = [], []
        while self._next is not None and self._next[0] <= step:
            if self._next[0] < step:
                late.append(self._next[0])
            else:
                keys += self._next[1]
            self._next = next(self._steps, None)
        return late, keys

    def rest(self) -> Iterator[tuple[int, list[str]]]:
        if self._next is not None:
            yield self._next
        yield from self._steps


class _Comparison:
    """The comparison of all logs with the order, in one pass over the steps."""

    def __init__(self, evidence: Evidence, shards: Shards, logs: list[_RankLog]) -> None:
        self._evidence, self._shards, self._logs = evidence, shards, logs
        self._faults: list[str] = []
        self._doubts: list[str] = []
        self._by_rank = self._as_sets = 0
        config = evidence.config
        window = config.data.shuffle_window_shards
        self._order = lru_cache(1)(partial(shards.order, config.seed, window=window))

    def add(self, stretch: Stretch) -> None:
        """Compare the steps of one attempt."""
        steps = stretch.steps
        if not steps:
            return
        if stretch.logs_samples is False:
            self._doubts.append(f"{_span(steps)} trained with log_samples=false")
            return
        unlogged = []
        try:
            for step, wanted in zip(steps, self._expected(stretch), strict=False):
                found = self._take(step)
                if stretch.world_size is None and not found and any(wanted):
                    unlogged.append(step)
                elif len(self._faults) < _ENOUGH_FAULTS:
                    self._compare(step, wanted, found, whole=stretch.world_size is None)
        except DataError as error:
            self._faults.append(f"the start recorded for {_span(steps)} is impossible: {error}")
        if unlogged:
            self._doubts.append(
                f"{len(unlogged)} steps from {unlogged[0]} on are in no sample log, and the "
                "version that trained them did not record whether it kept one"
            )

    def _expected(self, stretch: Stretch) -> Iterator[list[list[str]]]:
        """Yield the keys of every rank for every step; one rank takes all if none is on record."""
        size = self._evidence.config.batch.global_size
        world = stretch.world_size or 1
        batches = [
            ElasticBatches(
                order=self._order,
                num_samples=len(self._shards),
                global_batch=size,
                micro_batch=stretch.micro_batch or size,
                rank=rank,
                world=world,
                start=stretch.first_step * size,
                left_out=self._evidence.left_out,
            )
            for rank in range(world)
        ]
        endless = [iter(batch) for batch in batches]
        for step in stretch.steps:
            if step in self._evidence.left_out:
                yield [[] for _ in batches]
                continue
            yield [
                self._shards.keys(
                    [slot.row for _ in range(batch.accumulation) for slot in next(slots)]
                )
                for batch, slots in zip(batches, endless, strict=True)
            ]

    def _take(self, step: int) -> dict[int, list[str]]:
        found = {}
        for log in self._logs:
            late, keys = log.take(step)
            if late:
                self._faults.append(f"step {late[0]}, rank {log.rank}: its lines are out of place")
            if keys:
                found[log.rank] = keys
        return found

    def _compare(
        self, step: int, wanted: list[list[str]], found: Mapping[int, list[str]], *, whole: bool
    ) -> None:
        if whole:
            self._as_sets += any(wanted)
            together = [key for keys in found.values() for key in keys]
            self._note(f"step {step}", sorted(wanted[0]), sorted(together))
            return
        self._by_rank += any(wanted)  # nothing is wanted of a step that is left out
        for rank in sorted({*range(len(wanted)), *found}):
            own = wanted[rank] if rank < len(wanted) else []
            self._note(f"step {step}, rank {rank}", own, found.get(rank, []))

    def _note(self, where: str, wanted: list[str], found: list[str]) -> None:
        if found == wanted:
            return
        missing, surplus = Counter(wanted) - Counter(found), Counter(found) - Counter(wanted)
        lacking = f"sample {next(iter(missing))} is missing" if missing else ""
        strange = f"sample {next(iter(surplus))} does not belong there" if surplus else ""
        what = "; ".join(filter(None, (lacking, strange))) or "its samples are in another order"
        more = max(missing.total(), surplus.total()) - 1
        others = f", and {more} more" if more > 0 else ""
        self._faults.append(f"{where}: {what}{others}")

    def finish(self) -> dict[int, int]:
        """Read the logs to their end, and count the samples of steps that are not committed."""
        beyond: Counter[int] = Counter()
        for log in self._logs:
            for step, keys in log.rest():
                if step < self._evidence.steps:
                    self._faults.append(f"step {step}, rank {log.rank}: its lines are out of place")
                else:
                    beyond[step] += len(keys)
        return dict(sorted(beyond.items()))

    def check(self) -> Check:
        size = self._evidence.config.batch.global_size
        parts = []
        if self._by_rank:
            parts.append(f"{self._by_rank * size:,} samples, each in its place of its rank")
        if self._as_sets:
            parts.append(
                f"{self._as_sets * size:,} samples by global batch, because the number of ranks is "
                "not on record"
            )
        return Check(
            name=_NAME,
            detail="; ".join(parts),
            faults=tuple(self._faults[:_ENOUGH_FAULTS]),
            doubts=tuple(self._doubts),
        )


def _span(steps: range) -> str:
    return f"step {steps[0]}" if len(steps) == 1 else f"steps {steps[0]} to {steps[-1]}"
