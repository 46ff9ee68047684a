"""The CUDA scan computes what the reference computes: its own sources and launcher, on the CPU.

``cuda_host`` runs the kernels' threads as fibers, with poisoned shared memory. It finds wrong
numbers, indices and barriers; `vmp bench gpu` looks for races and measures, on a GPU.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from model.scan import bidirectional_scan, dispatch, op, selective_scan
from model.scan.cuda import launch
from model.scan.cuda import scan as cuda_scan
from model.scan.cuda.plan import Plan, backward_blocks
from model.scan.cuda.prepare import within_reach
from model.scan.problem import NAMES, Scan
from tests.model.scan.cuda_host import host_kernels

Make = Callable[..., dict[str, Tensor]]
Check = Callable[..., None]
GOLDEN = Path(__file__).parents[2] / "golden" / "selective_scan_0.npz"
bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32


@pytest.fixture(autouse=True)
def on_host(monkeypatch: pytest.MonkeyPatch, poisoned_memory: None) -> None:
    """The backend runs over CPU tensors, and fresh tensors start as NaN."""
    monkeypatch.setattr(launch, "load", host_kernels.load)
    ready = ("cuda", *dispatch.available_backends("cpu"))
    monkeypatch.setattr(dispatch, "available_backends", lambda device: ready)


@pytest.fixture
def cut(monkeypatch: pytest.MonkeyPatch, fresh_plans: None) -> Callable[[Plan], None]:
    """Cuts every scan by a given plan."""

    def choose(plan: Plan) -> None:
        monkeypatch.setattr(Plan, "of", classmethod(lambda cls, *_: plan))

    return choose


@pytest.mark.parametrize(
    ("shape", "dtype", "plan", "options"),
    [
        # (batch, channels, tokens, states); forward and backward segments, warps per block
        ((2, 37, 130, 16), f32, Plan(1, 1, 3), {}),
        ((1, 70, 49, 16), f32, Plan(3, 2, 3), {"initial_state": "zero"}),
        ((1, 19, 97, 16), f32, Plan(2, 5, 3), {"mask_backward": False}),
        ((2, 70, 40, 16), bf16, Plan(2, 3, 4), {}),
        ((1, 1, 1, 16), bf16, Plan(1, 1, 4), {}),
        ((1, 5, 15, 13), bf16, Plan(1, 1, 4), {"initial_state": "zero", "mask_backward": False}),
        ((2, 33, 33, 16), f16, Plan(2, 2, 1), {"delta_softplus": False}),
        ((1, 100, 31, 8), bf16, Plan(1, 2, 3), {}),
        ((2, 9, 50, 3), bf16, Plan(4, 4, 3), {}),
        ((1, 30, 65, 32), f16, Plan(3, 1, 3), {}),
        ((1, 9, 34, 64), f32, Plan(1, 3, 1), {}),
        ((1, 10, 34, 64), bf16, Plan(1, 3, 1), {}),
        ((3, 54, 33, 16), bf16, Plan(1, 1, 3), {}),
        ((1, 9, 17, 40), f32, Plan(2, 1, 1), {"mask_backward": False}),
    ],
)
@pytest.mark.parametrize("separate", [False, True])
def test_bidirectional(
    random_scan: Make,
    assert_agrees: Check,
    cut: Callable[[Plan], None],
    shape: tuple[int, int, int, int],
    dtype: torch.dtype,
    plan: Plan,
    options: dict[str, Any],
    separate: bool,
) -> None:
    cut(plan)
    layout = "strided" if separate else "token_major"
    tensors = random_scan(shape, separate=separate, gated=not separate, layout=layout)
    if "delta_softplus" in options:  # a step is positive, or the state grows without bound
        for name in ("delta", "delta_b", "delta_bias", "delta_bias_b"):
            if name in tensors:
                tensors[name] = tensors[name].detach().abs()
    tolerance = 1e-5 if dtype == f32 else torch.finfo(dtype).eps
    assert_agrees(
        bidirectional_scan, tensors, backend="cuda", dtype=dtype, tolerance=tolerance, **options
    )


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mask_current", [False, True])
@pytest.mark.parametrize("bare", [False, True])
def test_one_direction(
    random_scan: Make, assert_agrees: Check, reverse: bool, mask_current: bool, bare: bool
) -> None:
    tensors = random_scan((2, 40, 37, 16), layout="channel_major")
    for name in ("A_b", *(("D", "delta_bias", "z") if bare else ())):
        del tensors[name]
    assert_agrees(
        selective_scan,
        tensors,
        backend="cuda",
        reverse=reverse,
        mask_current=mask_current,
        delta_softplus=True,
        initial_state="first_token",
    )


@pytest.mark.parametrize("own", ["u", "delta", "B", "C", "D", "delta_bias"])
def test_one_tensor_is_the_backward_direction_s_own(
    random_scan: Make, assert_agrees: Check, own: str
) -> None:
    tensors = random_scan((1, 20, 37, 16))
    tensors[f"{own}_b"] = random_scan((1, 20, 37, 16), seed=1)[own]
    assert_agrees(bidirectional_scan, tensors, backend="cuda")


@pytest.mark.parametrize("odd", [None, "u", "z", "dout"])
def test_channels_go_in_pairs_where_addresses_are_even(
    random_scan: Make, monkeypatch: pytest.MonkeyPatch, odd: str | None
) -> None:
    """A tensor may begin anywhere; kernels that read two channels as one word may not."""
    widths: list[Any] = []

    def load(source: str, macros: dict[str, Any], device: torch.device) -> Any:
        widths.append(macros["WIDTH"])
        return host_kernels.load(source, macros, device)

    monkeypatch.setattr(launch, "load", load)
    tensors = {n: t.detach() for n, t in random_scan((2, 20, 37, 16)).items()}
    for name in ("u", "delta", "z", "B", "C"):
        tensors[name] = tensors[name].to(bf16)
    dout = torch.randn(2, 37, 20).to(bf16).transpose(1, 2)

    def results(change: dict[str, Tensor]) -> dict[str, Tensor]:
        scan = Scan(**(tensors | {name: t for name, t in change.items() if name != "dout"}))
        done = cuda_scan.forward(scan, keep=True)
        given = change.get("dout", dout)
        return cuda_scan.backward(scan, given, None, done.pre_gate, done.states)

    def shifted(tensor: Tensor) -> Tensor:
        memory = torch.empty(tensor.numel() + 1, dtype=tensor.dtype)[1:]
        return memory.as_strided(tensor.shape, tensor.stride(), 1).copy_(tensor)

    expected = results({})
    assert widths == [2, 2]
    if odd is None:
        return
    found = results({odd: shifted(dout if odd == "dout" else tensors[odd])})
    assert widths[2:] == [2 if odd == "dout" else 1, 1]
    for name, grad in found.items():
        torch.testing.assert_close(grad, expected[name], rtol=1e-2, atol=1e-3, msg=name)


@pytest.mark.parametrize("size", [8, 16, 64])
def test_nothing_is_read_behind_the_kept_states(random_scan: Make, size: int) -> None:
    """Lanes without a channel must not add the NaN that lies there to the sums for C."""
    tensors = random_scan((1, 21, 20, size))
    scan = Scan(**{name: tensor.detach() for name, tensor in tensors.items()})
    done = cuda_scan.forward(scan, keep=True)
    dout = torch.ones_like(done.out)
    expected = cuda_scan.backward(scan, dout, None, done.pre_gate, done.states)
    memory = torch.full((done.states.numel() + 64,), math.nan)
    states = memory[: done.states.numel()].view(done.states.shape).copy_(done.states)
    found = cuda_scan.backward(scan, dout, None, done.pre_gate, states)
    for name, grad in found.items():
        assert grad.isfinite().all(), name
        assert torch.equal(grad, expected[name]), name


@pytest.mark.parametrize("scales", [(1e-3, 16.0), (60.0, 1.0), (3.0, 1e4)])
def test_steps_and_decays_of_any_size(
    random_scan: Make, assert_agrees: Check, scales: tuple[float, float]
) -> None:
    tensors = random_scan((1, 20, 70, 16), delta_scale=scales[0], decay_scale=scales[1])
    assert_agrees(bidirectional_scan, tensors, backend="cuda")


def test_groups_and_the_last_state(random_scan: Make, cut: Callable[[Plan], None]) -> None:
    """Groups of channels with their own B and C; blocks do not reach over their ends."""
    cut(Plan(2, 2, 3))
    tensors = random_scan((2, 42, 40, 16))
    del tensors["A_b"]
    for name in ("B", "C"):
        groups = [random_scan((2, 42, 40, 16), seed=seed)[name].detach() for seed in (1, 2, 3)]
        tensors[name] = torch.stack(groups, dim=1).requires_grad_()
    leaves, dout = [*tensors.values()], torch.randn(2, 42, 40)
    results = []
    for backend in ("cuda", "reference"):
        out = selective_scan(**tensors, delta_softplus=True, backend=backend)
        results.append([out, *torch.autograd.grad(out, leaves, dout)])
        with torch.no_grad():
            results[-1].append(
                selective_scan(
                    **tensors, delta_softplus=True, return_last_state=True, backend=backend
                )[1]
            )
    for found, expected in zip(*results, strict=True):
        tolerance = 1e-5 * float(expected.detach().abs().max())
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=tolerance)


@pytest.mark.parametrize("case", ["forward", "masked_backward"])
def test_golden_file(case: str) -> None:
    golden = {name: torch.tensor(array) for name, array in np.load(GOLDEN).items()}
    names = ("u", "delta", "A", "B", "C", "D", "z", "delta_bias")
    tensors = {name: golden[name].clone().requires_grad_() for name in names}
    out = selective_scan(
        **tensors,
        delta_softplus=True,
        initial_state="first_token",
        mask_current=case == "masked_backward",
        backend="cuda",
    )
    out.backward(golden["dout"])
    torch.testing.assert_close(out, golden[f"{case}/out"], rtol=1e-5, atol=1e-6)
    for name, tensor in tensors.items():
        expected = golden[f"{case}/d_{name}"]
        atol = 2e-6 * float(expected.abs().max())
        torch.testing.assert_close(tensor.grad, expected, rtol=1e-5, atol=atol, msg=name)


@pytest.mark.parametrize("separate", [False, True])
def test_opcheck(random_scan: Make, separate: bool) -> None:
    tensors = random_scan((1, 18, 20, 8), separate=separate)
    scan = dispatch.Scan(**tensors, delta_softplus=True, first_token=True, mask_current=True)
    arguments = [getattr(scan, name) for name in NAMES]
    torch.use_deterministic_algorithms(False)  # opcheck compares memory that nobody reads
    result = torch.library.opcheck(op.forward_op, (*arguments, "cuda", True))
    assert set(result.values()) == {"SUCCESS"}


def test_two_runs_are_the_same_bits(random_scan: Make, cut: Callable[[Plan], None]) -> None:
    cut(Plan(2, 3, 3))
    tensors = random_scan((2, 40, 60, 16))
    runs = []
    for _ in range(2):
        out = bidirectional_scan(**tensors, backend="cuda")
        runs.append((out, *torch.autograd.grad(out.sum(), [*tensors.values()])))
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


def test_memory_kept_for_backward(random_scan: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    """At M's width and bf16, inputs included: at most 5 tensors of B * D * L floats."""
    kept = _Kept()
    monkeypatch.setattr(launch, "load", lambda *_: kept)
    wide = random_scan((1, 1152, 256, 16)).items()
    tensors = {name: t.detach().to(bf16) if t.dim() == 3 else t.detach() for name, t in wide}
    leaves = {name: tensor.requires_grad_() for name, tensor in tensors.items()}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bidirectional_scan(**leaves, backend="cuda")
    assert kept.launched == ["scan_ends", "scan_forward"]
    assert 4 * 1152 * 256 * 4 < sum(saved.values()) <= 5 * 1152 * 256 * 4


class _Kept:
    """Stands in for kernels and runs nothing: the memory kept depends on shapes alone."""

    def __init__(self) -> None:
        self.launched: list[str] = []

    def launch(self, name: str, *_: Any) -> None:
        self.launched.append(name)


def test_samples_further_apart_than_32_bits_reach(tmp_path: Path, random_scan: Make) -> None:
    """Tensors in a sparse file: two samples whose distance in elements is beyond 2^32."""
    tensors = {name: tensor.detach() for name, tensor in random_scan((2, 20, 30, 16)).items()}
    far = {}
    for name in ("u", "z", "B"):
        rows = tensors[name].shape[1]
        file = np.memmap(tmp_path / name, np.float32, "w+", shape=(2**32 + 30 * rows,))
        far[name] = torch.from_numpy(file).as_strided((2, rows, 30), (2**32, 1, rows))
        far[name].copy_(tensors[name])
    near, away = (bidirectional_scan(**(tensors | change), backend="cuda") for change in ({}, far))
    assert torch.equal(near, away)


def test_neighbours_too_far_apart_are_brought_together() -> None:
    memory = torch.empty(1, dtype=f32, device="meta")
    far = memory.as_strided((2, 3, 4), (2**40, 2**30, 1))
    near = memory.as_strided((2, 3, 4), (2**40, 2**30 - 1, 1))
    assert within_reach(far).stride() == (12, 4, 1)
    assert within_reach(near) is near


def test_the_plan_depends_on_shapes_alone() -> None:
    h100: dict[str, Any] = {"groups": 1, "size": 16, "passes": 2, "channels": 1152}
    h100["card"] = launch.Card()
    many = Plan.of(**h100, batch=16, length=8 * 196 + 1)
    assert many == Plan(forward_segments=1, backward_segments=1, backward_warps=3)
    assert Plan.of(**h100, batch=64, length=8 * 196 + 1)[:2] == (1, 1)
    long = Plan.of(**h100, batch=1, length=64 * 196 + 1)
    assert 8 <= long.forward_segments <= 32
    assert 8 <= long.backward_segments <= 32
    assert Plan.of(**h100, batch=1, length=10)[:2] == (1, 1)
    # Shared memory for one block of 8 warps, for two with that of an H100.
    assert backward_blocks(16, 4, 100 * 1024) == 1
    assert backward_blocks(16, 4, launch.Card().shared) == 2


def test_more_blocks_than_a_grid_takes_is_said(random_scan: Make) -> None:
    tensors = {name: tensor.detach() for name, tensor in random_scan((1, 16, 1, 16)).items()}
    huge = {
        name: tensor.expand(2**31, *tensor.shape[1:]) if tensor.dim() == 3 else tensor
        for name, tensor in tensors.items()
    }
    with pytest.raises(dispatch.ScanError, match="more than a GPU can be given"):
        bidirectional_scan(**huge, backend="cuda")
