"""`vmp bench gpu`: what only a GPU can tell of the CUDA kernels, in under six minutes.

1. right: values and gradients against float64 over layouts, dtypes and shapes; two runs alike.
2. clean: `compute-sanitizer` memcheck and racecheck on small shapes.
3. fast: the scan beside two mamba-ssm calls with flips, the convolution and the norm beside their
   bytes, each against what the card can do.
4. step: an optimizer step of M at 8 frames beside plain torch, ZeRO 0 and mamba-ssm's block.
"""

from __future__ import annotations

import json
import math
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.scan import bidirectional_scan, causal_conv1d_silu, cuda, mamba, rms_norm_residual
from pipeline.bench.gpu_errors import SHAPES, Tell, around_errors, scan_errors
from pipeline.bench.scan import (
    STATE,
    WIDTHS,
    Tensors,
    best_of,
    make_tensors,
    measure,
    measure_limits,
    two_mamba_calls,
)
from pipeline.bench.toolkit import find_program
from pipeline.errors import ConfigError

PARTS = ("right", "clean", "fast", "step")
_SMALL_SHAPES = "from pipeline.bench.gpu_errors import run_small; run_small()"
_SANITIZER_S = 150
_STEP_S = 240
STEP = ("k400_m16_f16", "model.num_frames=8", "batch.global_size=16", "batch.max_micro=16")
STEP_OPTIONS = ("--contenders", "plain-torch,zero0,mamba-block", "--seconds", "60")
CASES = [(8, "m", 8), (16, "m", 8), (16, "m", 16), (64, "m", 8), (1, "m", 64), (16, "ti", 8)]


def bench_gpu(parts: Sequence[str], out: Path, tell: Tell) -> bool:
    """Whether all is right and clean. All parts together are kept as `out`/CARD.json.

    Args:
        parts: of PARTS. tell: gets the lines to print.
    Raises ConfigError, before anything is measured, where there is no GPU for the kernels, for an
    unknown part, and where `out` cannot be written.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or not parts:
        given = f" {unknown[0]}: unknown" if unknown else ": names no part"
        raise ConfigError(f"--parts{given}; some of {','.join(PARTS)}")
    if missing := cuda.why_unavailable("cuda"):
        raise ConfigError(f"vmp bench gpu cannot run here: {missing}")
    is_whole = set(PARTS) <= set(parts)
    if is_whole:
        _make_folder(out)
    card = torch.cuda.get_device_name()
    result: dict[str, Any] = {
        "machine": f"{card}, {torch.cuda.get_device_properties(0).total_memory / 2**30:.0f} GiB",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "vmp bench gpu",
    }
    tell(", ".join(result.values()))
    wrong: list[str] = []
    if "right" in parts:
        wrong += scan_errors(SHAPES, "cuda", tell) + around_errors("cuda", tell)
    if "clean" in parts:
        wrong += sanitize(tell)
    if "fast" in parts:
        result |= _times(tell)
    if "step" in parts:
        result["step"], failed = time_step([*STEP, *STEP_OPTIONS], tell)
        wrong += failed
    if is_whole:
        path = out / f"{card.lower().replace(' ', '-')}.json"
        path.write_text(json.dumps(result | {"wrong": wrong}, indent=1) + "\n")
        tell(str(path))
    tell("\n".join(["WRONG:", *wrong]) if wrong else "all right")
    return not wrong


def _make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out}: cannot be made: {error.strerror}") from error
    if not os.access(out, os.W_OK):
        raise ConfigError(f"--out {out}: cannot be written")


def _times(tell: Tell) -> dict[str, Any]:
    if missing := mamba.why_unavailable():
        tell(f"mamba-ssm's kernel is not measured: {missing}")
    scans = []
    for case in CASES:
        scans.append(time_scan(*case))
        tell(json.dumps(scans[-1]))
    around = time_around()
    tell(json.dumps(around))
    return {"scan": scans, "around": around}


def sanitize(tell: Tell) -> list[str]:
    """What compute-sanitizer finds in the small shapes, one line each."""
    program = find_program("compute-sanitizer")
    if program is None:
        tell("clean: left out, compute-sanitizer is not installed")
        return ["compute-sanitizer is not installed"]
    wrong = []
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9"]
        command += [sys.executable, "-P", "-c", _SMALL_SHAPES]
        start = time.monotonic()
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_SANITIZER_S)
        except subprocess.TimeoutExpired:
            wrong.append(f"{tool} was stopped after {_SANITIZER_S} s")
            tell(wrong[-1])
            continue
        last = (done.stdout.strip().splitlines() or ["said nothing"])[-1]
        tell(f"{tool}: {last} ({time.monotonic() - start:.0f} s)")
        if done.returncode:
            tell(done.stdout[-3000:] + done.stderr[-1000:])
            wrong.append(f"{tool} found errors")
    return wrong


def time_step(arguments: Sequence[str], tell: Tell) -> tuple[list[str], list[str]]:
    """Run `vmp bench step` in a process of its own, since joining a process group is for good.

    Returns its lines and, when it failed, what went wrong.
    """
    command = [sys.executable, "-P", "-m", "pipeline.cli", "bench", "step", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_STEP_S)
    except subprocess.TimeoutExpired:
        return [], [f"the step was stopped after {_STEP_S} s"]
    tell(done.stdout.rstrip())
    if done.returncode:
        tell(done.stderr[-3000:])
        return [], [f"the step ended with status {done.returncode}"]
    return done.stdout.splitlines(), []


def _scan(tensors: Tensors) -> Tensor:
    arguments: dict[str, Any] = dict(tensors)
    return bidirectional_scan(**arguments)


def time_scan(batch: int, size: str, frames: int) -> dict[str, Any]:
    """Milliseconds of one shape, ours and mamba-ssm's, and the limits."""
    shape = (batch, WIDTHS[size], frames * 196 + 1, STATE)
    tensors, limits = make_tensors(shape, torch.bfloat16, "cuda"), measure_limits("cuda")
    found = {"cuda": measure("cuda", _scan, tensors, 4)}
    if mamba.why_unavailable() is None and batch <= 16:
        rows = {name: t.detach().contiguous().requires_grad_() for name, t in tensors.items()}
        found["two mamba-ssm calls, flips"] = measure("mamba", two_mamba_calls, rows, 4)
    activation = tensors["u"].nbytes
    line: dict[str, Any] = {
        "scan": f"{size}, {frames} frames, batch {batch}, bf16",
        "forward_ms": {name: 1e3 * (m.forward_s or math.nan) for name, m in found.items()},
        "both_ms": {name: 1e3 * (m.both_s or math.nan) for name, m in found.items()},
        "saved_over_BDL_floats": (found["cuda"].saved or 0) / (4 * math.prod(shape[:3])),
        # Two directions; u, delta, z -> out, then u, delta, z, dout -> du, ddelta, dz.
        "exponential_limit_ms": 1e3 * 4 * math.prod(shape) / limits.exponentials_per_s,
        "byte_limit_ms": 1e3 * 11 * activation / limits.bytes_per_s,
    }
    bound = max(line["exponential_limit_ms"], line["byte_limit_ms"])
    line["share_of_limit"] = bound / line["both_ms"]["cuda"]
    if len(found) == 2:
        ours, theirs = line["both_ms"].values()
        line["times_faster"] = theirs / ours
    return line


def time_around() -> list[dict[str, Any]]:
    """Convolution and norm of M, 8 frames, batch 16: milliseconds and the share of the bytes."""
    limits, lines = measure_limits("cuda"), []
    x = torch.randn(16, 1569, 1152, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    weight, bias = (torch.randn(s, device="cuda", requires_grad=True) for s in ((1152, 4), (1152,)))
    h = torch.randn(16, 1569, 576, device="cuda", dtype=torch.bfloat16, requires_grad=True)
    residual = torch.randn(16, 1569, 576, device="cuda", requires_grad=True)
    scale = torch.ones(576, device="cuda", requires_grad=True)
    dx, dh, dr = (torch.randn_like(t) for t in (x, h, residual))

    def conv() -> None:
        y = causal_conv1d_silu(x.transpose(1, 2), weight, bias)
        torch.autograd.grad(y, (x, weight, bias), dx.transpose(1, 2))

    def norm() -> None:
        out = rms_norm_residual(h, residual, scale, 1e-5)
        torch.autograd.grad(out, (h, residual, scale), (dh, dr))

    # conv: x -> y, then x, dy -> dx. norm: h, r -> normed, r; then r, dnormed, dr -> dh, dr.
    for name, run, moved in (
        ("convolution + SiLU", conv, 5 * x.nbytes),
        ("residual + RMSNorm", norm, 4 * h.nbytes + 5 * residual.nbytes),
    ):
        seconds = best_of(run, 5)
        lines.append(
            {"op": name, "both_ms": 1e3 * seconds, "share": moved / limits.bytes_per_s / seconds}
        )
    return lines
