"""The end of a job's batch script: why the ranks ended, and what comes next.

`python -m slurm.supervise STATUS RUN...` runs once per attempt, on the first node, after srun and
so after all ranks, however they died. It alone requeues. When its own node is lost, SLURM requeues
the job by itself, and the next attempt notes that (`note_lost_attempt`).
"""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from slurm import attempts, failures, files, marks, nodes, queue
from slurm.errors import ClusterError
from slurm.policy import Decision, End, decide
from slurm.record import JobRecord, read_record

FAILED = 1
_RESUMABLE = os.EX_TEMPFAIL
# SLURM announces a time limit up to a minute early, and a save takes its time.
_NEAR_THE_LIMIT_S = 90.0
# slurmstepd's words of two generations, and srun's.
_OOM_KILL = re.compile(rb"oom[-_]kill event|: Out Of Memory$", re.MULTILINE)


def supervise(run_dir: Path, srun_status: int) -> int:
    """Requeue the job or let it end; returns the exit status of the batch script."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # requeueing kills this job
    os.environ["VMP_ATTEMPT"] = marks.attempt_id()  # for what `settle` writes
    job_id = queue.own_job_id()
    job = queue.describe(job_id)
    if job.get("JobState") == "PENDING":  # somebody has requeued it; the next attempt notes that
        return _RESUMABLE
    record = read_record(run_dir)
    end = how_it_ended(run_dir, srun_status, job, record)
    step = newest_checkpoint(run_dir)
    history = [attempt for attempt in attempts.read(run_dir) if attempt.job_id == job_id]
    decision = decide(end, history, step, int(job.get("Restarts", "0")), record.retry)
    if end.node is not None:
        nodes.note_fault(run_dir.parent, end.node, run_dir.name, end.reason)
    if decision.requeue:
        decision = _requeue(run_dir, job_id, end, decision, record)
    attempts.append(
        run_dir,
        attempts.Attempt(
            job_id=job_id,
            restart=int(os.environ.get("SLURM_RESTART_COUNT", "0")),
            stop_class=end.stop_class,
            reason=end.reason,
            node=end.node,
            step=step,
            action=f"{'requeued' if decision.requeue else 'stopped'}: {decision.why}",
        ),
    )
    if decision.requeue:
        return _RESUMABLE
    status = int(_own_status(run_dir).get("exit_status", FAILED))
    if end.stop_class != "finished":
        print(f"job {job_id} ({end.stop_class}: {end.reason}) is not requeued: {decision.why}")
        from pipeline.training.aftermath import settle

        settle(run_dir, end.stop_class, end.reason)
    return status


def _requeue(
    run_dir: Path, job_id: str, end: End, decision: Decision, record: JobRecord
) -> Decision:
    """Put the job back; the decision as it could be carried out."""
    before = _status(run_dir)
    _write_status(run_dir, {"state": "queued", "stop_class": end.stop_class, "reason": end.reason})
    refusal = queue.requeue(job_id)
    if refusal is not None:
        _write_status(run_dir, before)
        return Decision(False, refusal)
    print(f"job {job_id} ({end.stop_class}: {end.reason}) goes back into the queue", flush=True)
    try:
        excluded = _exclude(run_dir.parent, decision, record)
        queue.hold_off(job_id, delay_s=decision.delay_s, exclude=excluded)
    except ClusterError as error:  # it is requeued: where and when matters less
        print(f"job {job_id}: {error}", flush=True)
        return decision
    if decision.delay_s or excluded:
        without = f", without {','.join(excluded)}" if excluded else ""
        print(f"job {job_id} starts in {decision.delay_s} s or later{without}", flush=True)
    return decision


def _exclude(runs_dir: Path, decision: Decision, record: JobRecord) -> list[str]:
    """Nodes to leave out next time: the one at fault, and those of the ledger, if spared."""
    # How many nodes meet a constraint, only SLURM knows: leaving one out might leave too few.
    if decision.exclude is None or record.profile.constraint:
        return []
    already = queue.expand(record.profile.exclude or "")
    present = queue.partition_nodes(record.profile.partition)
    usable = [node.name for node in present if node.is_usable and node.name not in already]
    lately = nodes.faulty(runs_dir, record.profile.bad_node_hours)
    others = [node for node in lately if node != decision.exclude]
    avoided = nodes.avoidable([decision.exclude, *others], usable, record.resources.nodes)
    return [*already, *avoided] if avoided else []


def how_it_ended(run_dir: Path, srun_status: int, job: Mapping[str, str], record: JobRecord) -> End:
    """The end of the attempt that this batch script started, from what its ranks left."""
    attempt = marks.attempt_id()
    status = _own_status(run_dir)
    failure = failures.first(run_dir, attempt)
    ranks = list(marks.read(run_dir, attempt))
    killed = [mark for mark in ranks if mark.status is None]
    # The record may be a default one, see `read_record`.
    missing = max(0, record.resources.nodes * record.resources.ranks_per_node - len(ranks))
    reason = str(status.get("reason", ""))
    if status.get("state") == "finished":
        return End("finished", "")
    if status.get("state") == "stopped":
        if job.get("Requeue") == "0":
            return End("cancelled", reason)
        return End(
            "time_limit" if _is_near_the_limit(job, record) else status["stop_class"], reason
        )
    if status.get("state") == "cancelled":  # `vmp jobs cancel` killed the ranks
        return End("cancelled", reason)
    if failure is not None and (not failure["consequence"] or failure["stop_class"] == "hang"):
        node = next((m.node for m in ranks if m.rank == failure["rank"]), failure["host"])
        to_blame = failure["stop_class"] == "node_fault"
        reason = f"rank {failure['rank']} on {node}: {failure['error']}"
        return End(failure["stop_class"], reason, node if to_blame else None)
    # srun tells the others to leave when one is gone: their word is then no proof of a signal.
    if not killed and not missing and any(mark.status == _RESUMABLE for mark in ranks):
        kind = "time_limit" if _is_near_the_limit(job, record) else "preempted"
        return End(kind, "a signal before training")
    how = _signal_name(srun_status)
    if missing:
        return End("node_fault", f"{missing} of the ranks did not start ({how}): see the log")
    if killed:
        names = ", ".join(f"rank {mark.rank} on {mark.node}" for mark in killed)
        if _tells_of_memory(record.log):
            return End("out_of_memory", f"{names} ended for want of host memory (oom_kill)")
        # Its peers may have been killed for waiting for it: then nobody knows which it was.
        node = killed[0].node if len({mark.node for mark in killed}) == 1 else None
        return End("node_fault", f"{names} ended without a word ({how})", node)
    where = "" if failure is None else f": rank {failure['rank']}: {failure['error']}"
    return End("node_fault", f"the ranks lost each other{where}")


def note_lost_attempt(run_dir: Path) -> None:
    """At a start: SLURM brought the job back without asking us, so its node was lost."""
    job_id, restart = queue.own_job_id(), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    known = {(attempt.job_id, attempt.restart) for attempt in attempts.read(run_dir)}
    if restart and (job_id, restart - 1) not in known:
        lost = attempts.Attempt(
            job_id=job_id,
            restart=restart - 1,
            stop_class="node_fault",
            reason="the batch script left no word: its node was lost, or SLURM preempted it",
            step=newest_checkpoint(run_dir),
            action="requeued by SLURM",
        )
        attempts.append(run_dir, lost)


def newest_checkpoint(run_dir: Path) -> int:
    """Step of the newest committed one, -1 without any."""
    found = (run_dir / "checkpoints").glob("step-*/COMMITTED")
    return max((int(path.parent.name.removeprefix("step-")) for path in found), default=-1)


def ends_at(job: Mapping[str, str]) -> float | None:
    """When the time limit of a job strikes, in seconds since the epoch; None without a limit."""
    try:
        return datetime.fromisoformat(job["EndTime"]).timestamp()
    except (KeyError, ValueError):
        return None


def _is_near_the_limit(job: Mapping[str, str], record: JobRecord) -> bool:
    limit = ends_at(job)
    return limit is not None and limit - time.time() < record.grace_s + _NEAR_THE_LIMIT_S


def _tells_of_memory(log: Path) -> bool:
    """Whether SLURM has written to the job's log that the kernel killed tasks for their memory.

    The log is of all attempts, but one that ends so is the last.
    """
    try:
        return _OOM_KILL.search(log.read_bytes()) is not None
    except OSError:
        return False


def _signal_name(srun_status: int) -> str:
    number = srun_status - 128
    known = {int(s): s.name for s in signal.Signals}
    return f"killed by {known[number]}" if number in known else f"srun status {srun_status}"


def _status(run_dir: Path) -> dict[str, Any]:
    return files.read_object(run_dir / "status.json") or {}


def _own_status(run_dir: Path) -> dict[str, Any]:
    """{} when the last word is that of an earlier attempt."""
    status = _status(run_dir)
    return status if status.get("attempt") == marks.attempt_id() else {}


def _write_status(run_dir: Path, content: Mapping[str, Any]) -> None:
    files.replace(run_dir / "status.json", json.dumps(content))


def main() -> None:
    """The arguments are srun's status and, for an array, the run of each element."""
    status, runs = int(sys.argv[1]), sys.argv[2:]
    element = int(re.sub(r"\D", "", os.environ.get("SLURM_ARRAY_TASK_ID", "")) or 0)
    try:
        raise SystemExit(supervise(Path(runs[element]), status))
    except OSError as error:  # a full disk: what the ranks printed stands above in the log
        print(f"the end of run {runs[element]} cannot be recorded, it stays down: {error}")
        raise SystemExit(FAILED) from error


if __name__ == "__main__":
    main()
