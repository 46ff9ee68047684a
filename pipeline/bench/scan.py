"""`vmp bench scan`: every scan backend next to its peers and to the machine's limits.

Every figure is measured in the same run. Times are minima over repeats on a CPU and medians of the
device's own time on a GPU. Memory is what autograd saves for backward. Bandwidth is effective: the
traffic counts each input and output once.
"""

import ctypes
import importlib.util
import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from model.scan import available_backends, bidirectional_scan, mamba
from model.scan.native import library
from pipeline.terminal import table_console

WIDTHS = {"ti": 384, "s": 768, "m": 1152}  # inner channels of Ti, S and M
STATE = 16
_MAX_STORED_GIB = 6.0  # peers that store (B, D, L, N) are skipped beyond this
_STORED_TENSORS = 10  # about how many tensors of that size they keep over both directions
_SEQUENTIAL = ("published loop", "reference")

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Measured:
    """A line of the table: seconds (None = not measured) and bytes saved for backward."""

    name: str
    forward_s: float | None = None
    both_s: float | None = None
    saved: int | None = None


@dataclass(frozen=True)
class Limits:
    """Rates of the machine at one operation alone."""

    exponentials_per_s: float
    libm_exponentials_per_s: float
    bytes_per_s: float
    steps_per_s: float | None = None
    """Steps of the recurrence of one channel and state, exponential included, in cache."""


def run(
    sizes: Sequence[str] = ("m",),
    frames: Sequence[int] = (8,),
    *,
    batch: int = 1,
    dtype: str = "float32",
    device: str = "cpu",
    repeats: int = 5,
    peers: bool = True,
    console: Console | None = None,
) -> list[Measured]:
    """Print a table per model size and number of frames, and return the lines of the last one.

    On a GPU the peer is plain VideoMamba's use of mamba-ssm, two calls with flipped copies.

    Args:
        sizes: keys of WIDTHS.
        frames: frames per clip, with 196 tokens each at 224 px, and one class token per clip.
        dtype: dtype of the activations; parameters are float32.
        peers: also measure the slow peers: the reference, the published loop and transformers.
    """
    console = console or table_console()
    limits = measure_limits(device)
    lines: list[Measured] = []
    if device == "cuda" and peers and (missing := mamba.why_unavailable()):
        console.print(f"mamba-ssm's kernel is not measured: {missing}")
    for size in sizes:
        for count in frames:
            shape = (batch, WIDTHS[size], count * 196 + 1, STATE)
            tensors = make_tensors(shape, getattr(torch, dtype), device)
            lines = [
                measure(name, scan, given, repeats)
                for name, scan, given in _candidates(tensors, shape, device, peers)
            ]
            console.print(_table(f"{size.upper()}, {count} frames", shape, tensors, lines))
            console.print(_roofline(shape, tensors, lines, limits))
            if peers and device == "cpu":
                console.print(_transformers_line(shape, lines))
    return lines


def make_tensors(shape: tuple[int, int, int, int], dtype: torch.dtype, device: str) -> Tensors:
    """Make the scan's inputs as a freshly initialised mixer does, in the same memory layout.

    `shape` is (B, D, L, N). Activations are (B, D, L) or (B, N, L) of `dtype`; parameters float32.
    """
    batch, channels, length, size = shape
    generator = torch.Generator().manual_seed(0)

    def activation(rows: int) -> Tensor:
        memory = torch.randn((batch, length, rows), generator=generator)
        return memory.to(device, dtype).transpose(1, 2).requires_grad_()

    step = torch.exp(torch.rand(channels, generator=generator) * math.log(100) + math.log(1e-3))
    parameters = {
        "A": -torch.arange(1.0, size + 1).repeat(channels, 1),
        "A_b": -torch.arange(1.0, size + 1).repeat(channels, 1),
        "D": torch.ones(channels),
        "delta_bias": step + torch.log(-torch.expm1(-step)),
    }
    tensors = {name: tensor.to(device).requires_grad_() for name, tensor in parameters.items()}
    tensors |= {name: activation(channels) for name in ("u", "delta", "z")}
    return tensors | {name: activation(size) for name in ("B", "C")}


def published_loop(tensors: Tensors) -> Tensor:
    """Run the published algorithm, written anew: full (B, D, L, N) tensors and a loop over tokens.

    The tensors are unbound before the loop, because indexing inside it, as the published code does,
    makes backward quadratic in L. Returns (B, D, L) float32.
    """
    u, z, B, C = (tensors[name].float() for name in ("u", "z", "B", "C"))
    delta = F.softplus(tensors["delta"].float() + tensors["delta_bias"][:, None])
    total = 2 * tensors["D"][:, None] * u
    for name, is_backward in (("A", False), ("A_b", True)):
        ordered = (t.flip(-1) if is_backward else t for t in (u, delta, B, C))
        u_t, delta_t, B_t, C_t = ordered
        decay = torch.exp(torch.einsum("bdl,dn->bdln", delta_t, tensors[name]))
        written = torch.einsum("bdl,bnl->bdln", delta_t * u_t, B_t)
        state = u_t[:, :, :1].expand(-1, -1, decay.shape[-1])
        outputs = []
        for a, w, c in zip(decay.unbind(2), written.unbind(2), C_t.unbind(2), strict=True):
            state = a * state + w
            seen = state - w if is_backward else state
            outputs.append(torch.einsum("bdn,bn->bd", seen, c))
        y = torch.stack(outputs, dim=2)
        total = total + (F.pad(y[:, :, 1:], (1, 0)).flip(-1) if is_backward else y)
    return total * F.silu(z)


def measure(
    name: str, scan: Callable[[Tensors], Tensor], tensors: Tensors, repeats: int
) -> Measured:
    """Time forward and forward + backward, and count the bytes saved for backward."""
    repeats = 1 if name in _SEQUENTIAL else repeats
    leaves = list(tensors.values())
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        dout = torch.randn_like(scan(tensors))  # this call is also the warm-up

    def forward() -> None:
        with torch.no_grad():
            scan(tensors)

    def both() -> None:
        torch.autograd.grad(scan(tensors), leaves, dout)

    both_repeats = repeats + (0 if name in _SEQUENTIAL else 1)
    return Measured(
        name, best_of(forward, repeats), best_of(both, both_repeats), sum(saved.values())
    )


def two_mamba_calls(tensors: Tensors) -> Tensor:
    """Run mamba-ssm as plain VideoMamba does: a zero initial state, no mask, and so less work.

    The tensors must be contiguous along the tokens, as mamba-ssm's kernel requires.
    """
    scan = mamba.stock_kernel()

    def call(flip: bool, A: Tensor) -> Tensor:
        u, delta, B, C, z = (
            tensors[name].flip(-1) if flip else tensors[name]
            for name in ("u", "delta", "B", "C", "z")
        )
        D, bias = tensors["D"], tensors["delta_bias"]
        y = scan(u, delta, A, B, C, D, z, bias, delta_softplus=True)
        return y.flip(-1) if flip else y

    return call(False, tensors["A"]) + call(True, tensors["A_b"])


def best_of(run_once: Callable[[], object], repeats: int) -> float:
    """Return the seconds of the fastest run; on a GPU, the median of the device's own time."""
    if torch.cuda.is_available():
        return _median_on_device(run_once, 3 * repeats)
    fastest = math.inf
    for _ in range(repeats):
        start = time.perf_counter()
        run_once()
        fastest = min(fastest, time.perf_counter() - start)
    return fastest


def _median_on_device(run_once: Callable[[], object], repeats: int) -> float:
    run_once()
    times = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda._sleep(1_000_000)  # launches queue up meanwhile, so host time does not count
        start.record()
        run_once()
        end.record()
        torch.cuda.synchronize()
        times.append(float(start.elapsed_time(end)) / 1e3)
    return statistics.median(times)


def measure_limits(device: str) -> Limits:
    """Measure the rates of exponentials in cache, own and torch.exp's, and of a large copy."""
    if device != "cpu":
        values = torch.randn(2**26, device=device)
        exp_s = best_of(lambda: torch.exp(values, out=values.zero_()), 5)
        rate = values.numel() / exp_s
        copy = best_of(values.clone, 10)
        return Limits(_gpu_exponentials_per_s(), rate, 2 * values.nbytes / copy)
    threads = torch.get_num_threads()
    block = torch.randn(8192) * 0.1
    out = torch.empty_like(block)

    def torch_exp() -> None:
        for _ in range(200):
            torch.exp(block, out=out)

    # A block is too small for torch to split, so one thread's rate is measured and multiplied.
    libm = 200 * block.numel() / best_of(torch_exp, 10) * threads
    own, steps = libm, None
    if library.is_available():
        kernels, count = library.library(), 100_000 * 1024
        arguments = (ctypes.c_int64(count), ctypes.c_int64(threads))
        own = count / best_of(lambda: kernels.exponentials(*arguments), 10)
        steps = count / best_of(lambda: kernels.recurrences(*arguments), 10)
    large = torch.randn(2**24)
    target = torch.empty_like(large)
    copy_s = best_of(lambda: target.copy_(large), 10)
    return Limits(own, libm, 2 * large.nbytes / copy_s, steps)


def _gpu_exponentials_per_s() -> float:
    """Compute the special-function units' rate: 16 per multiprocessor and clock since Volta."""
    properties = torch.cuda.get_device_properties(0)
    clock_khz = getattr(properties, "clock_rate", 1_755_000)
    return float(properties.multi_processor_count * 16 * clock_khz * 1e3)


def _candidates(
    tensors: Tensors, shape: tuple[int, int, int, int], device: str, peers: bool
) -> list[tuple[str, Callable[[Tensors], Tensor], Tensors]]:
    def backend(name: str) -> Callable[[Tensors], Tensor]:
        def scan(given: Tensors) -> Tensor:
            arguments: dict[str, Any] = dict(given)
            return bidirectional_scan(**arguments, backend=name)

        return scan

    stored = math.prod(shape) * 4 * _STORED_TENSORS
    names = [name for name in available_backends(device) if name != "reference"]
    found = [(name, backend(name), tensors) for name in names]
    if device == "cuda":
        if peers and mamba.why_unavailable() is None:
            rows = {n: t.detach().contiguous().requires_grad_() for n, t in tensors.items()}
            found.append(("two mamba-ssm calls, flips", two_mamba_calls, rows))
        return found
    if peers and stored <= _MAX_STORED_GIB * 2**30:
        found.append(("published loop", published_loop, tensors))
        found.append(("reference", backend("reference"), tensors))
    return found


def _table(
    title: str, shape: tuple[int, int, int, int], tensors: Tensors, lines: Sequence[Measured]
) -> Table:
    batch, channels, length, size = shape
    unit = batch * channels * length * 4
    best = lines[0]
    table = Table(
        title=f"bidirectional scan, {title}: B {batch}, D {channels}, L {length}, N {size}, "
        f"{str(tensors['u'].dtype).removeprefix('torch.')}, {torch.get_num_threads()} threads"
    )
    heads = ("forward ms", "fwd+bwd ms", "saved MiB", "x B*D*L*4", "GB/s", "Gexp/s")
    table.add_column("backend")
    for head in (*heads, f"{best.name} is faster by: fwd", "fwd+bwd"):
        table.add_column(head, justify="right")
    for line in lines:
        assert line.forward_s is not None
        assert line.both_s is not None
        assert line.saved is not None
        assert best.forward_s is not None
        assert best.both_s is not None
        table.add_row(
            line.name,
            f"{line.forward_s * 1e3:.2f}",
            f"{line.both_s * 1e3:.2f}",
            f"{line.saved / 2**20:.1f}",
            f"{line.saved / unit:.1f}",
            f"{_traffic(shape, tensors) / line.forward_s / 1e9:.1f}",
            f"{2 * math.prod(shape) / line.forward_s / 1e9:.1f}",
            f"{line.forward_s / best.forward_s:.1f}x",
            f"{line.both_s / best.both_s:.1f}x",
        )
    return table


def _traffic(shape: tuple[int, int, int, int], tensors: Tensors) -> int:
    """Count the bytes of a forward pass that reads u, delta, z, B and C and writes its result."""
    out = tensors["u"].numel() * tensors["u"].element_size()
    return out + sum(tensors[n].numel() * tensors[n].element_size() for n in "uzBC") + out


def _roofline(
    shape: tuple[int, int, int, int], tensors: Tensors, lines: Sequence[Measured], limits: Limits
) -> str:
    count = 2 * math.prod(shape)
    by_exp, by_libm = count / limits.exponentials_per_s, count / limits.libm_exponentials_per_s
    by_bytes = _traffic(shape, tensors) / limits.bytes_per_s
    bound = "exponentials" if by_exp > by_bytes else "bytes"
    far = ", ".join(
        f"{line.name} {line.forward_s / max(by_exp, by_bytes):.2f}x"
        for line in lines
        if line.forward_s
    )
    fastest = lines[0].forward_s or math.nan
    recurrence = ""
    if limits.steps_per_s:
        by_steps = count / limits.steps_per_s
        recurrence = (
            "With the recurrence's multiplications and additions, in cache, the same exponentials "
            f"take {by_steps * 1e3:.2f} ms ({by_steps / by_exp:.2f}x): {lines[0].name} is "
            f"{fastest / by_steps:.2f}x these, and {fastest / (by_steps + by_bytes):.2f}x these "
            "and the bytes one after the other. "
        )
    return (
        f"forward limits: {count / 1e6:.1f} M exponentials take {by_exp * 1e3:.2f} ms with our own "
        f"polynomial in cache and {by_libm * 1e3:.2f} ms with torch.exp; compulsory bytes take "
        f"{by_bytes * 1e3:.2f} ms. {bound} bind. Over that limit: {far}. {recurrence}"
        f"{lines[0].name} / torch.exp alone: {fastest / by_libm:.2f}x.\n"
    )


def _transformers_line(shape: tuple[int, int, int, int], lines: Sequence[Measured]) -> str:
    """Measure the forward pass of Hugging Face's plain-torch Mamba; its backward is quadratic."""
    if importlib.util.find_spec("transformers") is None:
        return "transformers is not installed: its plain-torch Mamba was not measured.\n"
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    batch, channels, length, size = shape
    config = MambaConfig(hidden_size=channels // 2, state_size=size, num_hidden_layers=1)
    mixer = MambaMixer(config, layer_idx=0).eval()
    hidden = torch.randn(batch, length, channels // 2)
    with torch.no_grad():
        seconds = best_of(lambda: mixer(hidden), 2)
    fastest = lines[0].forward_s or math.nan
    return (
        "transformers MambaMixer in plain torch (one direction, projections included, zero start): "
        f"{seconds * 1e3:.0f} ms; two of them are {2 * seconds / fastest:.0f}x our forward.\n"
    )
