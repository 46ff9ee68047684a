"""Computes RANK, LOCAL_RANK, WORLD_SIZE, ... of a task, for torch and DeepSpeed."""

from __future__ import annotations

import os

from slurm import queue


def environment(
    rank: int, local_rank: int, ranks: int, nodes: int, *, address: str, port: int
) -> dict[str, str]:
    """The variables of one rank. Rank 0 listens at `address` and `port`.

    When all ranks share one host they meet on its loopback interface, whatever `address` says.
    """
    if nodes == 1:
        address = "127.0.0.1"
    variables = {
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks // nodes),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    if address in ("127.0.0.1", "localhost"):
        variables["GLOO_SOCKET_IFNAME"] = "lo"
    return variables


def port_of(raw_job_id: int, step: int = 0) -> int:
    """A port on which all ranks of an attempt agree, and which differs for the next attempt."""
    # A requeued job keeps its id, so the restart count keeps its dead predecessor out of the group.
    # The elements of an array share the first part of their job id, but not the raw id.
    return 20000 + (raw_job_id * 17 + queue.own_restart() + step) % 20000


def of_own_step() -> dict[str, str]:
    """The variables of a task that a user's own srun started; {} for a step of one task.

    Only variables of the step tell them apart: a batch script has SLURM_NTASKS and SLURM_PROCID
    too. Raises ClusterError when scontrol is absent.
    """
    ranks = int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))
    if ranks == 1:
        return {}
    hosts = queue.expand(os.environ["SLURM_STEP_NODELIST"])
    return environment(
        int(os.environ["SLURM_PROCID"]),
        int(os.environ["SLURM_LOCALID"]),
        ranks,
        len(hosts),
        address=queue.node_address(hosts[0]),
        port=port_of(int(os.environ["SLURM_JOB_ID"]), int(os.environ["SLURM_STEP_ID"])),
    )
