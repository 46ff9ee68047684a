"""`vmp bench rows`: the small fused kernels against their bytes.

Convolution + SiLU and residual + RMSNorm are limited by memory. Each is therefore compared with the
time that its compulsory bytes take at the rate at which this device copies a tensor, measured in
the same run.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from model.scan import causal_conv1d_silu, rms_norm_residual
from pipeline.bench.scan import WIDTHS
from pipeline.terminal import table_console

_TOKENS_OF_A_FRAME = 196
_COPIED_BYTES = 1 << 28
# Each kernel maps the bytes of an activation to the bytes that it moves per element, forward and
# backward; the residual stream is float32.
_MOVED: dict[str, Callable[[int], tuple[int, int]]] = {
    "convolution": lambda width: (2 * width, 3 * width),
    "norm": lambda width: (2 * width + 8, (2 * width if width < 4 else width) + 12),
}


@dataclass(frozen=True)
class Measured:
    """Time of one kernel in seconds, and the bytes that it must read and write."""

    name: str
    seconds: float
    bytes: int


def measure(
    size: str, frames: int, batch: int, dtype: torch.dtype, device: torch.device, repeats: int
) -> list[Measured]:
    """Measure forward and backward of both kernels as a training step of a layer runs them."""
    channels, length = WIDTHS[size], frames * _TOKENS_OF_A_FRAME + 1
    width = torch.tensor([], dtype=dtype).element_size()

    def normal(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(shape, device=device, dtype=dtype, requires_grad=True)

    # As in the model, x is the first half of the projection's output, and so not contiguous.
    x = normal(batch, length, 2 * channels, dtype=dtype)[..., :channels].transpose(1, 2).detach()
    x.requires_grad_()
    taps, bias = normal(channels, 4), normal(channels)
    branch = normal(batch, length, channels // 2, dtype=dtype)
    stream, scale = normal(*branch.shape), normal(channels // 2)

    def convolve() -> list[Tensor]:
        return [causal_conv1d_silu(x, taps, bias)]

    def normalise() -> list[Tensor]:
        return list(rms_norm_residual(branch, stream, scale))

    def both_ways(name: str, forward: Callable[[], list[Tensor]], inputs: list[Tensor]) -> None:
        outs = forward()
        grads = [torch.randn_like(out) for out in outs]

        def backward() -> None:
            torch.autograd.grad(outs, inputs, grads, retain_graph=True)

        forth, back = _MOVED[name](width)
        elements = inputs[0].numel()
        found.append(Measured(f"{name} forward", seconds(forward), forth * elements))
        found.append(Measured(f"{name} backward", seconds(backward), back * elements))

    def seconds(run: Callable[[], object]) -> float:
        return _seconds(run, device, repeats)

    found: list[Measured] = []
    both_ways("convolution", convolve, [x, taps, bias])
    both_ways("norm", normalise, [branch, stream, scale])
    return found


def copied_bytes_per_s(device: torch.device, repeats: int) -> float:
    """Return the bytes per second that a copy of a large tensor reads and writes."""
    source = torch.zeros(_COPIED_BYTES, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * _COPIED_BYTES / _seconds(lambda: target.copy_(source), device, repeats)


def _seconds(run: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Return the seconds of a run: on a GPU the mean device time, else the median by the clock."""
    run()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        with profile(activities=[ProfilerActivity.CUDA]) as recorded:
            for _ in range(repeats):
                run()
            torch.cuda.synchronize(device)
        device_us = sum(float(event.self_device_time_total) for event in recorded.events())
        return device_us / repeats / 1e6
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def run(
    size: str,
    frames: int,
    batch: int,
    *,
    dtype: str,
    device: str,
    repeats: int,
    console: Console | None = None,
) -> None:
    """Print each kernel's time and its share of the limit that its bytes set."""
    console = console or table_console()
    place = torch.device(device)
    limit = copied_bytes_per_s(place, repeats)
    table = Table("kernel", "ms", "bytes alone, ms", "share of the limit")
    for line in measure(size, frames, batch, getattr(torch, dtype), place, repeats):
        alone = line.bytes / limit
        share = f"{alone / line.seconds:.0%}"
        table.add_row(line.name, f"{line.seconds * 1e3:.3f}", f"{alone * 1e3:.3f}", share)
    name = torch.cuda.get_device_name(place) if place.type == "cuda" else device
    console.print(f"{name}: {limit / 1e9:.0f} GB/s copied; {size}, {frames} frames, x {batch}")
    console.print(table)
