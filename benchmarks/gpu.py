"""Checks and timings of the CUDA kernels that need a GPU, in one command of under six minutes.

    python benchmarks/gpu.py

1. right: values and gradients against float64 over layouts, dtypes and shapes; two runs alike.
2. clean: `compute-sanitizer` memcheck and racecheck on small shapes.
3. fast: the scan beside two mamba-ssm calls with flips, the convolution and the norm beside their
   bytes, each against what the card can do.

`--parts right clean fast` picks some. The results go to benchmarks/results/CARD.json with the
machine's description. Without a GPU part 1 runs small shapes on the host shim of the tests, and the
others are left out. The exit status is 1 when something is wrong or unclean.
"""

import argparse
import json
import math
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from model.scan import (
    available_backends,
    bidirectional_scan,
    causal_conv1d_silu,
    dispatch,
    rms_norm_residual,
)
from pipeline.bench.scan import (
    STATE,
    WIDTHS,
    best_of,
    make_tensors,
    measure,
    measure_limits,
    two_mamba_calls,
    why_no_mamba,
)

ROOT = Path(__file__).parents[1]
Tensors = dict[str, Any]
TOLERANCE = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}
f32, bf16, f16 = TOLERANCE
# batch, channels, tokens, states: ragged, wide, long, few and many warps, every padded state size
SHAPES = [
    ((2, 70, 33, 16), f32),
    ((1, 1152, 1569, 16), f32),
    ((16, 1152, 100, 16), bf16),
    ((1, 96, 12_545, 16), bf16),
    ((2, 48, 257, 16), f16),
    ((2, 48, 1, 8), f32),
    ((3, 45, 130, 13), bf16),
    ((1, 33, 70_000, 32), f32),
    ((2, 40, 300, 64), f32),
]
SMALL = [
    ((2, 37, 50, 16), bf16),
    ((1, 40, 300, 16), f32),
    ((1, 20, 33, 8), f16),
    ((1, 18, 34, 32), f32),
]
CASES = [(8, "m", 8), (16, "m", 8), (16, "m", 16), (64, "m", 8), (1, "m", 64), (16, "ti", 8)]


def scan_errors(shapes: list[Any], device: str) -> list[str]:
    """Describe each fault in one line; prints the worst error of every case."""
    wrong = []
    for shape, dtype in shapes:
        for separate in (False, True):
            tensors = make_tensors(shape, dtype, device)
            tensors["A_b"] = (0.7 * tensors["A_b"].detach()).requires_grad_()
            if separate:
                names = ("u", "delta", "B", "C", "D", "delta_bias")
                tensors |= {f"{n}_b": _another(tensors[n]) for n in names}
            dout = torch.randn_like(tensors["u"])
            found = _values_and_gradients(tensors, dout, "cuda")
            doubles = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
            truth = _values_and_gradients(doubles, dout.double(), "chunked")
            errors = {name: _relative(found[name], truth[name]) for name in truth}
            name = max(errors, key=lambda key: (math.isnan(errors[key]), errors[key]))
            again = _values_and_gradients(tensors, dout, "cuda")
            alike = all(torch.equal(found[key], again[key]) for key in found)
            line = (
                f"scan {shape} {dtype} {'separate' if separate else 'shared'}: worst error "
                f"{errors[name]:.1e} ({name}), allowed {TOLERANCE[dtype]:.0e}"
                f"{'' if alike else '; TWO RUNS DIFFER'}"
            )
            print(line, flush=True)
            if not errors[name] <= TOLERANCE[dtype] or not alike:
                wrong.append(line)
    return wrong


def _another(tensor: Tensor) -> Tensor:
    return (0.5 * tensor.detach().roll(1, 0).flip(-1) + 0.1).requires_grad_()


def _relative(found: Tensor, truth: Tensor) -> float:
    largest = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found.double() - truth).abs().max() / largest)


def _values_and_gradients(tensors: Tensors, dout: Tensor, backend: str) -> Tensors:
    out = bidirectional_scan(**tensors, backend=backend)
    # A masked scan of one token ignores A_b.
    grads = torch.autograd.grad(
        out, list(tensors.values()), dout, allow_unused=True, materialize_grads=True
    )
    return {"out": out.detach()} | dict(zip(tensors, grads, strict=True))


def around_errors() -> list[str]:
    """Compare the convolution and the norm with float64."""
    wrong = []
    for dtype in TOLERANCE:
        x = torch.randn(2, 300, 96, device="cuda", dtype=dtype)
        weight, bias, scale = (torch.randn(s, device="cuda") for s in ((96, 4), (96,), (96,)))
        residual = torch.randn(2, 300, 96, device="cuda")
        results: list[list[Tensor]] = []
        for to, backend in ((dtype, "cuda"), (torch.float64, "torch")):
            double = to == torch.float64
            leaves = [x.to(to), *(t.to(to) if double else t for t in (weight, bias, scale))]
            leaves.append(residual.to(to) if double else residual)
            x_, weight_, bias_, scale_, residual_ = (t.clone().requires_grad_() for t in leaves)
            y = causal_conv1d_silu(x_.transpose(1, 2), weight_, bias_, backend=backend)
            normed, total = rms_norm_residual(x_, residual_, scale_, 1e-5, backend)
            loss = y.double().square().sum() + normed.double().square().sum() + total.double().sum()
            grads = torch.autograd.grad(loss, [x_, weight_, bias_, scale_, residual_])
            results.append([y.detach(), normed.detach(), total.detach(), *grads])
        worst = max(_relative(a, b.double()) for a, b in zip(*results, strict=True))
        line = f"convolution and norm {dtype}: worst error {worst:.1e}"
        print(line)
        if not worst <= 4 * TOLERANCE[dtype]:
            wrong.append(line)
    return wrong


def run_small() -> None:
    """Run the kernels over small shapes only, as a sanitizer is slow."""
    for shape, dtype in SMALL:
        tensors = make_tensors(shape, dtype, "cuda")
        _values_and_gradients(tensors, torch.randn_like(tensors["u"]), "cuda")
    torch.cuda.synchronize()


def sanitize() -> list[str]:
    """Run this script's small shapes under compute-sanitizer; one line for each finding."""
    program = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(program).exists():
        print("clean: left out, compute-sanitizer is not installed")
        return ["compute-sanitizer is not installed"]
    wrong = []
    for tool in ("memcheck", "racecheck"):
        command = [program, "--tool", tool, "--error-exitcode", "9"]
        command += [sys.executable, __file__, "--parts", "small"]
        start = time.monotonic()
        done = subprocess.run(command, capture_output=True, text=True, timeout=150)
        last = (done.stdout.strip().splitlines() or ["said nothing"])[-1]
        print(f"{tool}: {last} ({time.monotonic() - start:.0f} s)", flush=True)
        if done.returncode:
            print(done.stdout[-3000:], done.stderr[-1000:])
            wrong.append(f"{tool} found errors")
    return wrong


def time_scan(batch: int, size: str, frames: int) -> dict[str, Any]:
    """Milliseconds of one shape, ours and mamba-ssm's, and the limits."""
    shape = (batch, WIDTHS[size], frames * 196 + 1, STATE)
    tensors, limits = make_tensors(shape, bf16, "cuda"), measure_limits("cuda")
    found = {"cuda": measure("cuda", lambda t: bidirectional_scan(**t), tensors, 4)}
    if why_no_mamba() is None and batch <= 16:
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
    x = torch.randn(16, 1569, 1152, device="cuda", dtype=bf16, requires_grad=True)
    weight, bias = (torch.randn(s, device="cuda", requires_grad=True) for s in ((1152, 4), (1152,)))
    h = torch.randn(16, 1569, 576, device="cuda", dtype=bf16, requires_grad=True)
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


def on_host() -> None:
    """Let the backend run on the host shim of the tests."""
    sys.path.insert(0, str(ROOT))
    from model.scan.cuda import launch
    from tests.model.scan.cuda_host import host_kernels

    launch.load = host_kernels.load
    ready = ("cuda", *available_backends("cpu"))
    dispatch.available_backends = lambda device="cpu": ready


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    names = ["right", "clean", "fast"]
    parser.add_argument("--parts", nargs="+", choices=[*names, "small"], default=names)
    parts = parser.parse_args().parts
    if not torch.cuda.is_available():
        print("no GPU: small shapes on the host shim; `clean` and `fast` are left out")
        on_host()
        wrong = scan_errors(SMALL, "cpu")
        print("\n".join(["WRONG:", *wrong]) if wrong else "all right")
        return 1 if wrong else 0
    if "cuda" not in available_backends("cuda"):
        print("the cuda backend cannot run here; `vmp doctor` says why")
        return 2
    card = torch.cuda.get_device_name()
    driver = torch.cuda.get_device_properties(0)
    result: dict[str, Any] = {
        "machine": f"{card}, {driver.total_memory / 2**30:.0f} GiB",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "command": "python benchmarks/gpu.py",
    }
    print(*result.values(), sep=", ")
    wrong: list[str] = []
    if "small" in parts:
        run_small()
        return 0
    if "right" in parts:
        wrong += scan_errors(SHAPES, "cuda") + around_errors()
    if "clean" in parts:
        wrong += sanitize()
    if "fast" in parts:
        if missing := why_no_mamba():
            print(f"mamba-ssm's kernel is not measured: {missing}")
        result["scan"] = []
        for case in CASES:
            result["scan"].append(time_scan(*case))
            print(json.dumps(result["scan"][-1]), flush=True)
        result["around"] = time_around()
        print(json.dumps(result["around"]))
    if set(names) <= set(parts):
        result["wrong"] = wrong
        path = ROOT / "benchmarks" / "results" / f"{card.lower().replace(' ', '-')}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(result, indent=1) + "\n")
        print(path)
    print("\n".join(["WRONG:", *wrong]) if wrong else "all right")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
