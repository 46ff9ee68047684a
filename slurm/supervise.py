"""Runs at the end of a job's batch script: judges why the ranks ended and decides what follows.

`python -m slurm.supervise STATUS RUN...` runs once per attempt on the first node, after srun and
therefore after all ranks, however they ended. Nothing else requeues a run. If the first node itself
is lost, SLURM requeues the job, and the next attempt records that (`note_lost_attempt`).
"""

from __future__ import annotations

import os
import re
import signal
import sys
from pathlib import Path

from pipeline import rundir
from pipeline.rundir import Attempt, End, State, StopClass
from pipeline.rundir.attempts import ATTEMPT_VARIABLE
from pipeline.rundir.exits import FAILED, RESUMABLE
from slurm import nodes, queue
from slurm.errors import ClusterError
from slurm.judge import gather, judge
from slurm.policy import Decision, decide
from slurm.record import JobRecord, read_record


def supervise(run_dir: Path, srun_status: int) -> int:
    """Requeue the job or let it end; return the exit status of the batch script."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # requeueing sends it to this process
    attempt = queue.own_attempt()
    os.environ[ATTEMPT_VARIABLE] = attempt  # marks every record written from here on
    job_id = queue.own_job_id()
    job = queue.describe(job_id)
    if job.get("JobState") == "PENDING":  # requeued by somebody; the next attempt records it
        return RESUMABLE
    record = read_record(run_dir)
    end = judge(gather(run_dir, attempt, srun_status, job, record))
    step = rundir.newest_step(run_dir)
    history = [past for past in rundir.read_attempts(run_dir) if past.job_id == job_id]
    decision = decide(end, history, step, int(job.get("Restarts", "0")), record.retry)
    if end.node is not None:
        nodes.note_fault(run_dir.parent, end.node, run_dir.name, end.reason)
    if decision.requeue:
        decision = _requeue(run_dir, job_id, end, decision, record)
    rundir.append_attempt(
        run_dir,
        Attempt(
            job_id=job_id,
            restart=queue.own_restart(),
            stop_class=end.stop_class,
            reason=end.reason,
            node=end.node,
            step=step,
            action=f"requeued: {decision.why}" if decision.requeue else f"stopped: {decision.why}",
        ),
    )
    if decision.requeue:
        return RESUMABLE
    status = rundir.read_status(run_dir).of_attempt(attempt).exit_status
    if end.stop_class is not StopClass.FINISHED:
        told = f"({end.stop_class}: {end.reason})"
        print(f"job {job_id} {told} is not requeued: {decision.why}")
        from pipeline.training.aftermath import settle

        settle(run_dir, end)
    return FAILED if status is None else status


def _requeue(
    run_dir: Path, job_id: str, end: End, decision: Decision, record: JobRecord
) -> Decision:
    """Requeue the job; return the decision, changed to a stop when SLURM refuses."""
    before = rundir.read_status(run_dir)
    rundir.write_status(run_dir, State.QUEUED, end)
    refusal = queue.requeue(job_id)
    if refusal is not None:
        rundir.restore_status(run_dir, before)
        return Decision(False, refusal)
    print(f"job {job_id} ({end.stop_class}: {end.reason}) goes back into the queue", flush=True)
    try:
        excluded = _exclude(run_dir.parent, decision, record)
        queue.hold_off(job_id, delay_s=decision.delay_s, exclude=excluded)
    except ClusterError as error:  # the job is requeued, which matters more than where and when
        print(f"job {job_id}: {error}", flush=True)
        return decision
    if decision.delay_s or excluded:
        without = f", without {','.join(excluded)}" if excluded else ""
        print(f"job {job_id} starts in {decision.delay_s} s or later{without}", flush=True)
    return decision


def _exclude(runs_dir: Path, decision: Decision, record: JobRecord) -> list[str]:
    """Nodes to exclude next time: the one at fault and those of the ledger, if others remain."""
    # Only SLURM knows how many nodes meet a constraint, so excluding one might leave too few.
    if decision.exclude is None or record.profile.constraint:
        return []
    already = queue.expand(record.profile.exclude or "")
    present = queue.partition_nodes(record.profile.partition)
    usable = [node.name for node in present if node.is_usable and node.name not in already]
    lately = nodes.faulty(runs_dir, record.profile.bad_node_hours)
    others = [node for node in lately if node != decision.exclude]
    avoided = nodes.avoidable([decision.exclude, *others], usable, record.resources.nodes)
    return [*already, *avoided] if avoided else []


def note_lost_attempt(run_dir: Path) -> None:
    """At a start, record a previous attempt that SLURM requeued itself, unseen by a supervisor."""
    job_id, restart = queue.own_job_id(), queue.own_restart()
    known = {(attempt.job_id, attempt.restart) for attempt in rundir.read_attempts(run_dir)}
    if restart and (job_id, restart - 1) not in known:
        lost = Attempt(
            job_id=job_id,
            restart=restart - 1,
            stop_class=StopClass.NODE_FAULT,
            reason="the batch script left no word: its node was lost, or SLURM preempted it",
            step=rundir.newest_step(run_dir),
            action="requeued by SLURM",
        )
        rundir.append_attempt(run_dir, lost)


def main() -> None:
    """Supervise the run of this job. Arguments: srun's status, and a run per array element."""
    status, runs = int(sys.argv[1]), sys.argv[2:]
    element = int(re.sub(r"\D", "", os.environ.get("SLURM_ARRAY_TASK_ID", "")) or 0)
    try:
        raise SystemExit(supervise(Path(runs[element]), status))
    except OSError as error:  # e.g. a full disk; the log above holds the output of the ranks
        print(f"the end of run {runs[element]} cannot be recorded, so it is not requeued: {error}")
        raise SystemExit(FAILED) from error


if __name__ == "__main__":
    main()
