"""`vmp doctor`: checks of this machine; each line is OK or says what to do."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib import metadata, util
from pathlib import Path
from typing import NamedTuple

import torch

from model.scan import available_backends, cuda
from pipeline.health.preflight import SHARED_MEMORY, low_space
from pipeline.terminal import say, say_json

_FREE_GIB = 10


class Finding(NamedTuple):
    state: str
    """OK, note (training works without it) or BAD (training will not work)."""
    text: str


def examine(*, as_json: bool = False) -> int:
    """Print all findings and return the exit status: 1 when a finding is BAD."""
    findings = [finding for check in CHECKS for finding in check()]
    if as_json:
        say_json([finding._asdict() for finding in findings])
    for finding in () if as_json else findings:
        say(f"{finding.state:<5}{finding.text}")
    return int(any(finding.state == "BAD" for finding in findings))


def _versions() -> Iterator[Finding]:
    yield Finding("OK", f"python {platform.python_version()} on {platform.platform()}")
    for name in ("torch", "deepspeed", "submitit", "mlflow", "webdataset", "av"):
        try:
            yield Finding("OK", f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            yield Finding("BAD", f"{name} is missing: make venv")


class Extra(NamedTuple):
    """An optional package whose installation needs more than pip."""

    module: str
    use: str
    install: str


_PIP = f"{sys.executable} -m pip install -c constraints.txt"
EXTRAS = (
    Extra(
        "ffcv",
        "vmp data cache",
        f"apt-get install libturbojpeg0-dev libopencv-dev pkg-config g++ && {_PIP} -e '.[ffcv]'",
    ),
    Extra(
        "torchcodec",
        "data.decoder=torchcodec",
        f"apt-get install ffmpeg && {_PIP} -e '.[torchcodec]'",
    ),
    Extra(
        "mamba_ssm",
        "model.scan_backend=mamba_ssm, on a GPU",
        "MAMBA_FORCE_BUILD=TRUE MAMBA_KEEP_CUDA_BUILD=TRUE CAUSAL_CONV1D_FORCE_BUILD=TRUE "
        f"{_PIP} --no-build-isolation -e '.[gpu]'",
    ),
)


def _optional() -> Iterator[Finding]:
    """Import each package in a process of its own, as an installed package may fail to load."""
    for module, use, install in EXTRAS:
        if util.find_spec(module) is None:
            yield Finding("note", f"{module} is not installed ({use}); in the checkout: {install}")
            continue
        ran = subprocess.run(
            [sys.executable, "-P", "-c", f"import {module}"], capture_output=True, text=True
        )
        if ran.returncode == 0:
            yield Finding("OK", f"{module} loads ({use})")
        else:
            reason = (ran.stderr.strip().splitlines() or [f"status {ran.returncode}"])[-1]
            yield Finding("note", f"{module} does not load: {reason}; in the checkout: {install}")


def _devices() -> Iterator[Finding]:
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        name = torch.cuda.get_device_name(index)
        yield Finding("OK", f"GPU {index}: {name}, {free / 2**30:.0f} of {total / 2**30:.0f} GiB")
    if not torch.cuda.is_available():
        yield Finding("note", f"no GPU: training on {os.cpu_count()} CPU cores")
    elif torch.distributed.is_nccl_available():
        yield Finding("OK", "NCCL is built in")
    else:
        yield Finding("BAD", "no NCCL: install a CUDA build of torch with it")


def _kernels() -> Iterator[Finding]:
    """Report the scan backends of the device that training would use."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    backends = available_backends(device)
    yield Finding("OK", f"scan on {device}: {backends[0]} (also {', '.join(backends[1:])})")
    if device == "cuda" and backends[0] != "cuda":
        yield Finding("note", f"no fused scan on this GPU: {cuda.why_unavailable('cuda')}")
    if device == "cpu" and backends[0] != "cpu":
        yield Finding(
            "note",
            "no C++ compiler: the scan on the CPU is plain PyTorch; apt-get install g++",
        )


def _disk() -> Iterator[Finding]:
    for name, path in (("working directory", Path()), ("shared memory", SHARED_MEMORY)):
        if low := low_space(path, _FREE_GIB):
            yield Finding("note", f"{name} {low} to be safe")
        else:
            free = shutil.disk_usage(path).free / 2**30
            yield Finding("OK", f"{name}: {free:.0f} GiB free")


def _slurm() -> Iterator[Finding]:
    if shutil.which("sinfo") is None:
        yield Finding(
            "note",
            "no SLURM here: --cluster local works, --cluster slurm needs sbatch on the PATH "
            "(a login node has it; to try it on this machine: apt-get install slurm-wlm munge)",
        )
        return
    answer = subprocess.run(["sinfo", "-h", "-o", "%P %a %D"], capture_output=True, text=True)
    if answer.returncode:
        yield Finding("BAD", f"SLURM does not answer: {answer.stderr.strip()}")
    for line in answer.stdout.splitlines():
        yield Finding("OK", f"SLURM partition, state, nodes: {line}")


def _mlflow() -> Iterator[Finding]:
    uri = os.environ.get("MLFLOW_TRACKING_URI")
    yield Finding(
        "OK", f"MLflow store: {uri or 'sqlite beside the runs (MLFLOW_TRACKING_URI unset)'}"
    )


CHECKS: tuple[Callable[[], Iterator[Finding]], ...] = (
    _versions,
    _optional,
    _devices,
    _kernels,
    _disk,
    _slurm,
    _mlflow,
)
