"""A real SLURM of three nodes on this machine, without any system service.

munged, slurmctld and one slurmd per node run in the foreground as children of this process, as the
user who starts them, with their own ports, sockets and state in one temporary directory. `python -m
tests.slurm.cluster` (`make slurm-dev`) keeps one up for a person.
"""

from __future__ import annotations

import getpass
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

NODES = 3
_DAEMONS = ("munged", "slurmctld", "slurmd")
_CLIENTS = ("sbatch", "srun", "squeue", "scancel", "scontrol")
_READY_S = 60.0

# cred_expire is also the time that a requeued job has to wait: 120 s unless told otherwise.
# config_overrides: the nodes are believed to have the cores written here, whatever the machine has.
_CONF = """\
ClusterName=vmptest
SlurmctldHost=localhost
SlurmctldPort={ctld_port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={state}/munge.socket,cred_expire=10
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,batch_sched_delay=0
SlurmdParameters=config_overrides
ReturnToService=2
JobRequeue=1
KillWait=10
MinJobAge=3600
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
StateSaveLocation={state}/ctld
SlurmctldPidFile={state}/slurmctld.pid
SlurmctldLogFile={state}/slurmctld.log
SlurmdSpoolDir={state}/spool.%n
SlurmdPidFile={state}/slurmd.%n.pid
SlurmdLogFile={state}/slurmd.%n.log
NodeName=node[1-{nodes}] NodeHostname=localhost Port=[{ports}] CPUs=4 RealMemory=8000 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> list[str]:
    """The programs of the Debian packages slurm-wlm and munge that are missing."""
    return [name for name in (*_DAEMONS, *_CLIENTS) if _which(name) is None]


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")


@contextmanager
def running_cluster() -> Iterator[Path]:
    """A cluster with all nodes idle; yields its slurm.conf, to be exported as SLURM_CONF."""
    with ExitStack() as stack:
        # In /tmp itself: a socket's path must stay below 108 characters.
        state = Path(tempfile.mkdtemp(prefix="vmp-slurm-", dir="/tmp"))
        stack.callback(shutil.rmtree, state, ignore_errors=True)
        state.chmod(0o755)
        (state / "ctld").mkdir()
        conf = _write_conf(state)
        _start_munge(stack, state)
        environment = os.environ | {"SLURM_CONF": str(conf)}
        _start(stack, state, "slurmctld", "-D", "-i", env=environment)
        for number in range(1, NODES + 1):
            _start(stack, state, "slurmd", "-D", "-N", f"node{number}", env=environment)
        stack.callback(_cancel_all, environment)
        _wait_until_idle(state, environment)
        yield conf


def _write_conf(state: Path) -> Path:
    ctld_port, first = _free_port(), _consecutive_ports(NODES)
    conf = state / "slurm.conf"
    conf.write_text(
        _CONF.format(
            state=state,
            user=getpass.getuser(),
            ctld_port=ctld_port,
            nodes=NODES,
            ports=f"{first}-{first + NODES - 1}",
        )
    )
    return conf


def _start_munge(stack: ExitStack, state: Path) -> None:
    key = state / "munge.key"
    key.touch(mode=0o600)
    key.write_bytes(secrets.token_bytes(128))
    socket_path = state / "munge.socket"
    options = [f"--{kind}-file={state}/munged.{kind}" for kind in ("pid", "log", "seed")]
    options += [f"--key-file={key}", f"--socket={socket_path}", "--num-threads=2"]
    process = _start(stack, state, "munged", "--foreground", *options, env=dict(os.environ))
    _until(socket_path.exists, process, state, "munged")


def _start(
    stack: ExitStack, state: Path, program: str, *arguments: str, env: dict[str, str]
) -> subprocess.Popen[bytes]:
    path = _which(program)
    assert path is not None, f"{program} is not installed: apt-get install slurm-wlm munge"
    with (state / f"{program}.out").open("ab") as output:
        # A session of its own: the terminal's Ctrl-C is for us, who stop the daemons in order.
        # setpriv: when we are killed ourselves, the daemons are told to end.
        process = subprocess.Popen(
            ["setpriv", "--pdeathsig", "TERM", path, *arguments],
            env=env,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    stack.callback(_stop, process)
    return process


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=15)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _cancel_all(environment: dict[str, str]) -> None:
    """Cancel all jobs and wait for their step daemons, which are not our children."""

    def ask(*command: str) -> str:
        return subprocess.run(command, env=environment, capture_output=True, text=True).stdout

    jobs = ask("squeue", "-h", "-o", "%A").split()
    for sign in ([], ["--signal=KILL"]):
        if jobs:
            ask("scancel", *sign, *jobs)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and ask("squeue", "-h", "-o", "%A").strip():
        time.sleep(0.2)


def _wait_until_idle(state: Path, environment: dict[str, str]) -> None:
    def idle() -> bool:
        command = ["sinfo", "-h", "-N", "-o", "%T"]
        answer = subprocess.run(command, env=environment, capture_output=True, text=True)
        return answer.stdout.split() == ["idle"] * NODES

    _until(idle, None, state, "nodes")


def _until(
    condition: Callable[[], bool], process: subprocess.Popen[bytes] | None, state: Path, what: str
) -> None:
    deadline = time.monotonic() + _READY_S
    while not condition():
        died = process is not None and process.poll() is not None
        if died or time.monotonic() > deadline:
            logs = "\n".join(
                f"--- {path.name}\n{path.read_text(errors='replace')[-2000:]}"
                for path in sorted([*state.glob("*.log"), *state.glob("*.out")])
            )
            raise RuntimeError(f"SLURM did not come up ({what})\n{logs}")
        time.sleep(0.1)


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])


def _consecutive_ports(count: int) -> int:
    """First of `count` free ports in a row; below the range that the kernel hands out."""
    for first in range(17000 + os.getpid() % 9000, 32000, count):
        with ExitStack() as stack:
            try:
                for port in range(first, first + count):
                    stack.enter_context(socket.socket()).bind(("", port))
            except OSError:
                continue
            return first
    raise RuntimeError("no free ports")


def main() -> None:
    """Run a cluster until Ctrl-C."""
    absent = missing()
    if absent:
        raise SystemExit(f"missing {', '.join(absent)}: apt-get install slurm-wlm munge")
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    with suppress(KeyboardInterrupt), running_cluster() as conf:
        print(f"export SLURM_CONF={conf}", flush=True)
        print(f"{NODES} nodes are idle; try: srun -N{NODES} hostname. Ctrl-C ends it.", flush=True)
        signal.pause()


if __name__ == "__main__":
    main()
