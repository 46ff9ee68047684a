"""`vmp bench host`: what a call of the CUDA operators costs on the host, in microseconds.

Shapes are small and the same in every call, so that the host's work is what is measured: checks,
choice of a backend, autograd, allocation and the parameters of the kernels. On a CPU the kernels
are taken to be ready and are not launched; on a GPU they are.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from unittest import mock

import torch
from rich.table import Table
from torch import Tensor

from model.config import ModelConfig
from model.mixer import Mixer
from model.scan import bidirectional_scan, causal_conv1d_silu, cuda, rms_norm_residual
from model.scan.cuda import launch
from model.scan.native import library
from pipeline.bench.scan import make_tensors

_BATCH, _CHANNELS, _TOKENS, _STATES = 2, 64, 9, 16
Run = Callable[[], object]


class _NoKernels:
    """Stands where kernels are loaded, and launches nothing."""

    def launch(self, *_: object) -> None: ...


@contextmanager
def without_launches() -> Iterator[None]:
    """Take the CUDA kernels to be ready on the CPU, and leave out their launches."""
    with (
        mock.patch.object(launch, "load", _no_kernels),
        mock.patch.object(cuda, "is_available", _yes),
        mock.patch.object(library, "is_available", _no),
    ):
        yield


def _no_kernels(*_: object) -> _NoKernels:
    return _NoKernels()


def _yes(device: torch.device) -> bool:
    return True


def _no() -> bool:
    return False


def bench_host(device: str, rounds: int, calls: int) -> Table:
    """A table of the operators: each time is the least of ``rounds`` of ``calls`` calls."""
    torch.set_num_threads(1)  # threads that wait for each other would take longer than the calls
    table = Table("operator", "forward, us", "forward and backward, us")
    with without_launches() if device == "cpu" else nullcontext():
        for name, forward, inputs in _operators(device):
            results = forward()
            grads = [torch.ones_like(result) for result in results]

            def both(
                forward: Callable[[], list[Tensor]] = forward,
                inputs: list[Tensor] = inputs,
                grads: list[Tensor] = grads,
            ) -> None:
                torch.autograd.grad(forward(), inputs, grads)

            with torch.no_grad():
                alone = _microseconds(forward, device, rounds, calls)
            together = _microseconds(both, device, rounds, calls)
            table.add_row(name, f"{alone:.0f}", f"{together:.0f}")
    return table


def _operators(device: str) -> Iterator[tuple[str, Callable[[], list[Tensor]], list[Tensor]]]:
    """Name, forward and the tensors that get a gradient, with activations in bfloat16."""
    shape = (_BATCH, _CHANNELS, _TOKENS, _STATES)
    scan = make_tensors(shape, torch.bfloat16, device)
    yield (
        "selective scan, both directions",
        lambda: [bidirectional_scan(**scan, backend="cuda")],  # type: ignore[arg-type]
        list(scan.values()),
    )

    def normal(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(size, device=device, dtype=dtype, requires_grad=True)

    config = ModelConfig(embed_dim=_CHANNELS // 2, depth=1, img_size=32, num_frames=2)
    mixer = Mixer(config).to(device)
    xz = normal(_BATCH, _TOKENS, 2 * _CHANNELS, dtype=torch.bfloat16)
    around = ("in_proj.weight", "out_proj.weight")
    parameters = [p for name, p in mixer.named_parameters() if name not in around]
    yield (
        "mixer between its projections",
        lambda: [mixer._inner(xz, "cuda", "cuda")],
        [xz, *parameters],
    )
    x = normal(_BATCH, _TOKENS, _CHANNELS, dtype=torch.bfloat16)
    taps, bias = normal(_CHANNELS, 4), normal(_CHANNELS)
    yield (
        "convolution + SiLU",
        lambda: [causal_conv1d_silu(x.transpose(1, 2), taps, bias)],
        [x, taps, bias],
    )
    stream, scale = normal(*x.shape), normal(_CHANNELS)
    yield (
        "residual + RMSNorm",
        lambda: list(rms_norm_residual(x, stream, scale)),
        [x, stream, scale],
    )


def _microseconds(run: Run, device: str, rounds: int, calls: int) -> float:
    """Of the fastest round; on a CPU, of this thread's own time, which other work cannot take."""
    clock = time.thread_time if device == "cpu" else time.perf_counter
    run()
    times = []
    for _ in range(rounds):
        if device != "cpu":
            torch.cuda.synchronize(device)
        start = clock()
        for _ in range(calls):
            run()
        times.append((clock() - start) / calls)
    return 1e6 * min(times)
