"""The Triton scan on a GPU: right against float64, then timed against mamba-ssm and flipped copies.

    python benchmarks/scan_gpu.py

Needs a CUDA device, triton and this package (installed, or the checkout in PYTHONPATH); mamba-ssm
is measured when it can be imported. Activations are bf16, parameters float32, as under autocast.
Ratios are of medians within one run.
"""

import importlib
import math
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from model.scan import bidirectional_scan, selective_scan
from pipeline.bench.scan import STATE, WIDTHS, make_tensors, measure_limits

Tensors = dict[str, Any]
CASES = [(8, "m", 8), (4, "m", 16), (1, "m", 64), (8, "s", 16), (16, "ti", 8)]


def errors_against_float64(console: Console) -> bool:
    """Print the largest relative error per tensor over odd shapes; False when one is too large."""
    good = True
    for shape, dtype, tolerance in [
        ((2, 70, 33, 16), torch.float32, 2e-5),
        ((1, 1152, 1569, 16), torch.float32, 1e-4),
        ((2, 48, 1, 8), torch.float32, 2e-5),
        ((1, 33, 70_000, 32), torch.float32, 1e-4),
        ((1, 96, 12_545, 16), torch.bfloat16, 1e-2),
        ((2, 48, 257, 16), torch.float16, 2e-3),
    ]:
        tensors = make_tensors(shape, dtype, "cuda")
        dout = torch.randn_like(tensors["u"])
        found = _values_and_gradients(tensors, dout, "triton")
        doubles = {name: t.detach().double().requires_grad_() for name, t in tensors.items()}
        expected = _values_and_gradients(doubles, dout.double(), "chunked")
        errors = {
            name: _relative_error(found[name].double(), truth) for name, truth in expected.items()
        }
        name = max(errors, key=lambda key: (math.isnan(errors[key]), errors[key]))
        good &= errors[name] <= tolerance
        console.print(
            f"{shape} {dtype}: worst {errors[name]:.1e} ({name}), allowed {tolerance:.0e}"
        )
        again = _values_and_gradients(tensors, dout, "triton")
        if not all(torch.equal(found[key], again[key]) for key in found):
            console.print("[red]two runs differ[/red]")
            good = False
    return good


def _relative_error(found: Tensor, truth: Tensor) -> float:
    """Largest error over the largest value; NaN where there is one."""
    largest = truth.abs().max().clamp_min(torch.finfo(torch.float64).tiny)
    return float((found - truth).abs().max() / largest)


def _values_and_gradients(tensors: Tensors, dout: Tensor, backend: str) -> Tensors:
    out = bidirectional_scan(**tensors, backend=backend)
    return {"out": out.detach()} | dict(
        zip(tensors, torch.autograd.grad(out, list(tensors.values()), dout), strict=True)
    )


def fused(tensors: Tensors) -> Tensor:
    return bidirectional_scan(**tensors, backend="triton")


def copy_and_flip(tensors: Tensors) -> Tensor:
    """Two calls of our own kernel in one direction, the second on flipped copies."""
    one_way = {name: tensors[name] for name in ("u", "delta", "B", "C", "D", "z", "delta_bias")}
    options: dict[str, Any] = {"delta_softplus": True, "initial_state": "first_token"}
    forward = selective_scan(**one_way, A=tensors["A"], **options, backend="triton")
    flipped = {n: t.flip(-1) if t.dim() == 3 else t for n, t in one_way.items()}
    options["mask_current"] = True
    backward = selective_scan(**flipped, A=tensors["A_b"], **options, backend="triton")
    return forward + backward.flip(-1)


def two_mamba_calls(tensors: Tensors) -> Tensor:
    """Plain VideoMamba's use of the CUDA kernel: zero start, no mask, so less than our work.

    The kernel wants contiguous tokens: give it tensors that have them.
    """
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    def call(flip: bool, A: Tensor) -> Tensor:
        u, delta, B, C, z = (
            tensors[name].flip(-1) if flip else tensors[name]
            for name in ("u", "delta", "B", "C", "z")
        )
        D, bias = tensors["D"], tensors["delta_bias"]
        y: Tensor = selective_scan_fn(u, delta, A, B, C, D, z, bias, delta_softplus=True)
        return y.flip(-1) if flip else y

    return call(False, tensors["A"]) + call(True, tensors["A_b"])


def why_no_mamba() -> str | None:
    """What is wrong with mamba-ssm here; None when its kernel can be called."""
    try:
        importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    except Exception as error:  # built for another torch, its kernels raise what they like
        return f"{type(error).__name__}: {error}"
    return None


def _median_s(run: Callable[[], object], rounds: int = 20) -> float:
    for _ in range(3):
        run()
    times = []
    for _ in range(rounds):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)  # while the launches queue up: the device's time is meant
        start.record()
        run()
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def _times_s(scan: Callable[[Tensors], Tensor], tensors: Tensors) -> tuple[float, float]:
    """Forward, and forward + backward."""
    leaves, dout = list(tensors.values()), torch.randn_like(tensors["u"])

    def forward() -> None:
        with torch.no_grad():
            scan(tensors)

    def both() -> None:
        torch.autograd.grad(scan(tensors), leaves, dout)

    return _median_s(forward), _median_s(both)


def time_case(console: Console, batch: int, size: str, frames: int, with_mamba: bool) -> None:
    """Print one shape: each contender's times, and how far ours is from the binding limit."""
    shape = (batch, WIDTHS[size], frames * 196 + 1, STATE)
    tensors = make_tensors(shape, torch.bfloat16, "cuda")
    contenders = {"fused": (fused, tensors), "copy and flip": (copy_and_flip, tensors)}
    if with_mamba:
        rows = {name: t.detach().contiguous().requires_grad_() for name, t in tensors.items()}
        contenders["two mamba-ssm calls"] = (two_mamba_calls, rows)
    table = Table(title=f"{size.upper()}, {frames} frames, batch {batch}, bf16")
    for head in ("", "forward ms", "fwd+bwd ms", "x fused forward", "x fused fwd+bwd"):
        table.add_column(head, justify="right")
    first: tuple[float, float] | None = None
    for name, (scan, given) in contenders.items():
        times = _times_s(scan, given)
        first = first or times
        ratios = (f"{mine / ours:.2f}x" for mine, ours in zip(times, first, strict=True))
        table.add_row(name, *(f"{seconds * 1e3:.3f}" for seconds in times), *ratios)
    console.print(table)
    assert first is not None
    limits = measure_limits("cuda")
    # Two directions, forward and backward. (Ours makes six: backward's also for the token after.)
    exponentials = 4 * math.prod(shape) / limits.exponentials_per_s
    # Forward u, delta, z -> out; backward u, delta, z, dout -> du, ddelta, dz.
    activation = tensors["u"].numel() * tensors["u"].element_size()
    traffic = 11 * activation / limits.bytes_per_s
    bound = max(exponentials, traffic)
    console.print(
        f"limits of forward + backward: exponentials {exponentials * 1e3:.3f} ms, bytes "
        f"{traffic * 1e3:.3f} ms; fused reaches {bound / first[1]:.0%} of the binding one\n"
    )


def main() -> int:
    console = Console()
    if not torch.cuda.is_available():
        console.print("needs a CUDA device; `vmp bench scan` measures the CPU")
        return 2
    console.print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    good = errors_against_float64(console)
    without_mamba = why_no_mamba()
    if without_mamba is not None:
        console.print(f"mamba-ssm's CUDA kernel is not measured: {without_mamba}")
    for case in CASES:
        time_case(console, *case, with_mamba=without_mamba is None)
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
