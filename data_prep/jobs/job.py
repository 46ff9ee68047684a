"""Runs a sharding job, which claims shards one by one until none is left.

Several jobs, on one node or many, can work on one directory; a slow job takes fewer shards.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Collection, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

from data_prep.errors import DataError, MachineTrouble
from data_prep.jobs.claims import Claim, Claims
from data_prep.jobs.pool import ClipPool
from data_prep.jobs.progress import JobProgress, progress_bar
from data_prep.jobs.record import record_name
from data_prep.jobs.write import ShardWriter
from data_prep.plan import PlannedClip, PlannedShard
from data_prep.storage import Store, open_store
from data_prep.video.clip import ClipRequest, PreparedClip, RejectedClip
from data_prep.workdir import SplitPlan, Workdir

_POISON = frozenset({"crash", "timeout", "memory"})
_POLL_S = 2.0


def run_shard_worker(work: Path, *, decoders: int | None = None) -> int:
    """Work on the run planned in `work` until every shard is done; return the shards written.

    `decoders` is the number of processes that decode and encode, by default one per usable core.
    The job waits for shards that other jobs hold and takes over those of dead jobs. It may be
    killed at any time.
    """
    workdir = Workdir(work)
    plans = workdir.plans()
    if not plans:
        raise DataError(f"{work}: no plan; run `vmp data shard` to make one")
    names = {name for plan in plans for name in plan.shard_names()}
    return make_shards(workdir, open_store(plans[0].out, workdir.scratch), names, decoders=decoders)


def make_shards(
    workdir: Workdir, store: Store, names: Collection[str], *, decoders: int | None = None
) -> int:
    """Make those planned shards that `store` lacks; return the number of shards written."""
    plans = workdir.plans()
    with Claims(workdir.claims) as claims:
        job = _Job(workdir, store, claims, plans, names)
        if not job.has_work():
            return 0
        with ClipPool[_Task](decoders or len(os.sched_getaffinity(0)), plans[0].caps) as pool:
            return job.run(pool)


_Entry = tuple[SplitPlan, int, str]
"""The plan, number and name of a shard."""


@dataclass(frozen=True, slots=True)
class _Task:
    """A clip on its way through the pool."""

    writer: ShardWriter
    claim: Claim
    clip: PlannedClip
    entry: _Entry


class _Job:
    def __init__(
        self,
        workdir: Workdir,
        store: Store,
        claims: Claims,
        plans: list[SplitPlan],
        names: Collection[str],
    ) -> None:
        self._workdir, self._store, self._claims = workdir, store, claims
        self._progress = JobProgress(workdir.progress / f"{claims.owner}.json")
        self._written = 0
        self._open: list[_Entry] = [
            (plan, number, name)
            for plan in plans
            for number, name in enumerate(plan.shard_names())
            if name in names
        ]
        self._forget_finished()

    def has_work(self) -> bool:
        return bool(self._open)

    def run(self, pool: ClipPool[_Task]) -> int:
        while self._open:
            for task, prepared in pool.map(self._requests()):
                if isinstance(prepared, RejectedClip) and prepared.code in _POISON:
                    self._workdir.add_poison(task.clip.key, prepared.code, prepared.detail)
                self._account(task, prepared)
            self._progress.flush()
            if self._open:  # other jobs hold the rest; no clip of this job is in flight
                time.sleep(_POLL_S)
                self._forget_finished()
        return self._written

    def _account(self, task: _Task, prepared: PreparedClip | RejectedClip) -> None:
        """Add a clip to its shard, and publish the shard if that completes it."""
        task.writer.add(task.clip, prepared)
        failed = isinstance(prepared, RejectedClip)
        size = 0 if isinstance(prepared, RejectedClip) else prepared.original.bytes
        self._progress.count(bytes_in=size, failed=failed)
        if task.writer.is_complete:
            self._publish(task)

    def _publish(self, task: _Task) -> None:
        try:
            if not self._is_lost(task):
                task.writer.publish(self._store)
                self._written += 1
                return
        except FileNotFoundError:  # the job that took over removes the scratch file
            if not self._is_lost(task):
                raise
        finally:
            self._claims.release(task.claim)
        # This job now waits for the shard as for any other job's, in case its new owner dies.
        task.writer.discard()
        self._open.append(task.entry)

    def _is_lost(self, task: _Task) -> bool:
        """Whether another job took the shard over, for example while this one was suspended."""
        done = self._store.size(record_name(task.entry[2])) is not None
        return done or not self._claims.holds(task.claim)

    def _requests(self) -> Iterator[tuple[_Task, ClipRequest]]:
        """Yield the clips of one shard after another, claiming each when the pool has room."""
        poison = self._workdir.poison()
        for entry in tuple(self._open):
            name = entry[2]
            claim = self._claims.take(name)
            if claim is None:
                continue
            self._open.remove(entry)
            if self._store.size(record_name(name)) is not None:
                self._claims.release(claim)
                continue
            yield from self._shard_requests(entry, claim, poison)

    def _forget_finished(self) -> None:
        names = set(self._store.names())
        self._open = [entry for entry in self._open if record_name(entry[2]) not in names]

    def _shard_requests(
        self, entry: _Entry, claim: Claim, poison: dict[str, tuple[str, str]]
    ) -> Iterator[tuple[_Task, ClipRequest]]:
        plan, number, _ = entry
        shard = self._workdir.shard(plan, number)
        writer = self._writer(plan, shard, claim)
        for clip in shard.clips:
            task = _Task(writer, claim, clip, entry)
            if clip.key in poison:
                self._account(task, RejectedClip(*poison[clip.key]))
                continue
            path = os.path.join(plan.videos, clip.path)
            yield task, ClipRequest(path, clip.trim_start_s, clip.trim_end_s, plan.encode)

    def _writer(self, plan: SplitPlan, shard: PlannedShard, claim: Claim) -> ShardWriter:
        for generation in range(claim.generation):
            self._scratch(shard, generation).unlink(missing_ok=True)
        scratch = self._scratch(shard, claim.generation)
        return ShardWriter(shard, plan.classes, plan.fingerprint, scratch)

    def _scratch(self, shard: PlannedShard, generation: int) -> Path:
        return self._store.scratch(f"{shard.name}.{generation}")


def run_jobs(work: Path, *, jobs: int, decoders: int, show_progress: bool) -> None:
    """Run jobs on this machine until they end. The others take over the shards of a dead job."""
    with progress_bar(work) if show_progress else nullcontext():
        if jobs == 1:
            run_shard_worker(work, decoders=decoders)
            return
        command = [sys.executable, "-P", "-m", "data_prep.jobs.job", str(work), str(decoders)]
        processes = [subprocess.Popen(command) for _ in range(jobs)]
        try:
            statuses = [process.wait() for process in processes]
        finally:
            for process in processes:
                process.terminate()
                process.wait()
        if all(statuses):
            raise MachineTrouble(f"{work}: all {jobs} jobs stopped; each gives its reason above")


if __name__ == "__main__":
    try:
        run_shard_worker(Path(sys.argv[1]), decoders=int(sys.argv[2]))
    except MachineTrouble as trouble:
        sys.exit(f"error: {trouble}")
