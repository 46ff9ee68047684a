"""Our scan takes what mamba-ssm's function takes: grouped and constant B and C, the last state.

The grid and the tolerances are those of the peer's own test (tests/ops/test_selective_scan.py of
state-spaces/mamba), real A, with the values that it leaves commented out and gradients beside them.
"""

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from model.scan import ScanError, available_backends, bidirectional_scan, op, selective_scan
from model.scan import mamba as stock
from model.scan.cuda import launch
from model.scan.cuda.plan import Plan
from model.scan.problem import TENSORS, Scan
from model.scan.reference import scan_reference
from tests.model.scan.cuda_host import host_kernels

BATCH, CHANNELS, SIZE = 2, 4, 8
FUSED = [name for name in available_backends() if name != "reference"]
TOLERANCES = {
    torch.float32: (6e-4, 2e-3),
    torch.float16: (3e-3, 5e-3),
    torch.bfloat16: (3e-2, 5e-2),
}
# How B and C are given: constant, for all channels, or for 2 groups of channels.
KINDS = ["constant B and C", "constant B", "constant C", "variable", "grouped"]
Tensors = dict[str, Tensor]


def _tensors(
    kind: str, length: int, dtype: torch.dtype = torch.float32, channels: int = CHANNELS
) -> Tensors:
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    def uniform(*shape: int) -> Tensor:
        return 0.5 * torch.rand(shape, generator=generator)

    groups = (2,) if kind == "grouped" else ()
    tensors = {
        "u": normal(BATCH, channels, length).to(dtype),
        "delta": uniform(BATCH, channels, length).to(dtype),
        "z": normal(BATCH, channels, length).to(dtype),
        "A": -uniform(channels, SIZE),
        "D": normal(channels),
        "delta_bias": uniform(channels),
    }
    for name in ("B", "C"):
        constant = kind.startswith("constant") and name in kind.removeprefix("constant ")
        shape = (channels, SIZE) if constant else (BATCH, *groups, SIZE, length)
        tensors[name] = normal(*shape) if constant else normal(*shape).to(dtype)
    return tensors


def _results(tensors: Tensors, dtype: torch.dtype | None = None, **options: Any) -> Tensors:
    """Output, last state and the gradients that both send back."""
    leaves = {
        name: tensor.detach().to(dtype or tensor.dtype).requires_grad_()
        for name, tensor in tensors.items()
    }
    out, last_state = selective_scan(**leaves, return_last_state=True, **options)
    generator = torch.Generator().manual_seed(1)
    douts = [torch.randn(t.shape, generator=generator).to(t.dtype) for t in (out, last_state)]
    grads = torch.autograd.grad([out, last_state], list(leaves.values()), douts)
    return {"out": out, "last state": last_state} | {
        f"d{name}": grad for name, grad in zip(leaves, grads, strict=True)
    }


def _check(
    found: Tensors, expected: Tensors, tensors: Tensors, tolerances: tuple[float, float]
) -> None:
    rtol, atol = tolerances
    assert found["last state"].dtype == torch.float32
    for name, value in expected.items():
        if name.startswith("d"):
            assert found[name].shape == tensors[name[1:]].shape
            assert found[name].dtype == tensors[name[1:]].dtype
        # Gradients that sum over tokens are larger than the values that they belong to.
        scale = max(1.0, float(value.abs().max())) if name.startswith("d") else 1.0
        torch.testing.assert_close(
            found[name].double(),
            value,
            rtol=rtol,
            atol=atol * scale,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("length", [1, 128, 372])
@pytest.mark.parametrize("kind", KINDS)
def test_dtypes_and_lengths(backend: str, kind: str, length: int, dtype: torch.dtype) -> None:
    tensors = _tensors(kind, length, dtype)
    found = _results(tensors, delta_softplus=True, backend=backend)
    expected = _results(tensors, torch.float64, delta_softplus=True, backend="reference")
    _check(found, expected, tensors, TOLERANCES[dtype])


@pytest.mark.usefixtures("poisoned_memory")
@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_switches(backend: str, kind: str) -> None:
    """Covers D, gate, bias and softplus present and absent, every start, masks and directions."""
    for bits in itertools.product([False, True], repeat=4):
        given = dict(zip(("D", "z", "delta_bias", "delta_softplus"), bits, strict=True))
        softplus = given.pop("delta_softplus")
        tensors = _tensors(kind, 9)
        for name, is_given in given.items():
            if not is_given:
                del tensors[name]
        for start, masked, reverse in itertools.product(
            ["zero", "first_token", "tensor"], [False, True], [False, True]
        ):
            options: dict[str, Any] = {"mask_current": masked, "reverse": reverse}
            if start == "tensor":
                tensors["initial_state"] = torch.randn(BATCH, CHANNELS, SIZE)
            else:
                options["initial_state"] = start
                tensors.pop("initial_state", None)
            options["delta_softplus"] = softplus
            found = _results(tensors, backend=backend, **options)
            expected = _results(tensors, torch.float64, backend="reference", **options)
            _check(found, expected, tensors, (1e-4, 1e-4))


@pytest.mark.parametrize("backend", FUSED)
def test_groups_wider_than_a_tile(backend: str) -> None:
    """Groups of 35 channels: a full tile of the C++ kernels and the start of another."""
    tensors = _tensors("grouped", 70, channels=70)
    found = _results(tensors, delta_softplus=True, backend=backend)
    expected = _results(tensors, torch.float64, delta_softplus=True, backend="reference")
    _check(found, expected, tensors, (1e-4, 1e-4))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_two_directions_share_or_own_them(
    assert_agrees: Callable[..., None], backend: str, kind: str
) -> None:
    tensors = _tensors(kind, 70) | {"A_b": _tensors(kind, 70)["A"] * 0.5}
    assert_agrees(bidirectional_scan, tensors, backend=backend)
    own = {"B_b": tensors["B"].flip(-1).clone(), "C_b": tensors["C"].flip(-1).clone()}
    assert_agrees(bidirectional_scan, tensors | own, backend=backend)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
@pytest.mark.parametrize("kind", KINDS)
def test_a_sequence_can_be_scanned_in_pieces(backend: str, kind: str) -> None:
    """The last state of one piece is the initial state of the next, values and gradients."""
    tensors = {name: t.requires_grad_() for name, t in _tensors(kind, 150).items()}

    def piece(tokens: slice, state: Tensor | str) -> tuple[Tensor, Tensor]:
        cut = {n: t[..., tokens] if t.dim() > 2 else t for n, t in tensors.items()}
        out, last = selective_scan(
            **cut, initial_state=state, delta_softplus=True, backend=backend, return_last_state=True
        )
        return out, last

    first, state = piece(slice(0, 83), "first_token")
    second, end = piece(slice(83, 150), state)
    whole, last = piece(slice(0, 150), "first_token")
    torch.testing.assert_close(torch.cat((first, second), dim=2), whole)
    torch.testing.assert_close(end, last)
    leaves = list(tensors.values())
    in_pieces = torch.autograd.grad(first.sum() + second.sum() + end.sum(), leaves)
    at_once = torch.autograd.grad(whole.sum() + last.sum(), leaves)
    torch.testing.assert_close(in_pieces, at_once, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("backend", FUSED)
def test_a_loss_of_the_last_state_alone(backend: str) -> None:
    u, delta, A, B, C = (_tensors("variable", 9)[name] for name in ("u", "delta", "A", "B", "C"))
    grads = []
    for name in ("reference", backend):
        leaf = u.clone().requires_grad_()
        state = selective_scan(leaf, delta, A, B, C, backend=name, return_last_state=True)[1]
        grads.append(torch.autograd.grad(state.square().sum(), leaf)[0])
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("first_token", [False, True])
def test_identities_of_the_stock_kernel(kind: str, first_token: bool) -> None:
    """A kernel that starts at zero, here our reference, gives the same with virtual tokens."""

    def zero_start(*arguments: Tensor) -> Tensor:
        out: Tensor = selective_scan(*arguments, backend="reference")
        return out

    tensors = {n: t.double().requires_grad_() for n, t in _tensors(kind, 13).items()}
    options = {"first_token": first_token, "mask_current": True, "return_last_state": True}
    found = stock.run(Scan(**tensors, **options), zero_start)
    expected = selective_scan(
        **tensors,
        initial_state="first_token" if first_token else "zero",
        mask_current=True,
        return_last_state=True,
        backend="reference",
    )
    torch.testing.assert_close(found, expected)
    leaves = list(tensors.values())
    grads = (torch.autograd.grad([t.sum() for t in pair], leaves) for pair in (found, expected))
    torch.testing.assert_close(*grads)


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("kind", KINDS)
def test_opcheck(backend: str, kind: str) -> None:
    tensors = {name: t.requires_grad_() for name, t in _tensors(kind, 20).items()}
    tensors["initial_state"] = torch.randn(BATCH, CHANNELS, SIZE, requires_grad=True)
    present = [tensors.get(name) for name in TENSORS]
    arguments = (*present, True, False, True, False, True, backend, True)
    assert set(torch.library.opcheck(op.forward_op, arguments).values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", FUSED)
def test_no_zeros_are_made_of_what_has_no_gradient(backend: str) -> None:
    """Autograd would fill zeros as large as the kept states in each backward pass."""
    tensors = {name: t.requires_grad_() for name, t in _tensors("variable", 1000).items()}
    out, _ = selective_scan(**tensors, backend=backend, return_last_state=True)
    with torch.profiler.profile(record_shapes=True) as profile:
        torch.autograd.grad(out.sum(), list(tensors.values()))
    made = [event for event in profile.events() if event.name == "aten::zeros"]
    assert not made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"B": torch.zeros(2, 3, 8, 9)}, "4 channels do not divide into 3 groups"),
        ({"B": torch.zeros(2, 0, 8, 9)}, "4 channels do not divide into 0 groups"),
        (
            {"B": torch.zeros(2, 2, 8, 9)},
            r"C is \(2, 8, 9\) float32; .* \(2, 2, 8, 9\) or \(4, 8\)",
        ),
        (
            {"C": torch.zeros(4, 7)},
            r"C is \(4, 7\) float32; .* \(2, 8, 9\) or \(2, 1, 8, 9\) or \(4, 8\)",
        ),
        ({"initial_state": torch.zeros(2, 4)}, r"initial_state is \(2, 4\) .* \(2, 4, 8\)"),
    ],
)
def test_bad_shapes(change: Tensors, message: str) -> None:
    with pytest.raises(ScanError, match=message):
        selective_scan(**(_tensors("variable", 9) | change))


def test_two_directions_have_no_one_state() -> None:
    tensors = _tensors("variable", 9)
    for state in ({"initial_state": torch.zeros(2, 4, 8)}, {"return_last_state": True}):
        scan = Scan(**tensors, A_b=tensors["A"], **state)
        with pytest.raises(ScanError, match="one direction"):
            scan.validate()


@pytest.mark.usefixtures("poisoned_memory", "fresh_plans")
@pytest.mark.parametrize("kind", ["variable", "grouped"])
@pytest.mark.parametrize("length", [37, 200])
def test_the_cuda_kernels_take_and_return_states(
    monkeypatch: pytest.MonkeyPatch, kind: str, length: int
) -> None:
    """Covers one segment of tokens, and several."""
    activations: list[str] = []

    def load(source: str, macros: dict[str, Any], device: torch.device) -> host_kernels.HostKernels:
        activations.append(macros["ACTIVATION"])
        return host_kernels.load(source, macros, device)

    monkeypatch.setattr(launch, "load", load)
    monkeypatch.setattr(Plan, "of", classmethod(lambda cls, *_: cls(3, 2, 3)))
    tensors = _tensors(kind, length) | {"initial_state": torch.randn(BATCH, CHANNELS, SIZE)}
    dlast = torch.randn(BATCH, CHANNELS, SIZE)
    half = {
        n: t.bfloat16() if n in ("u", "delta", "z", "B", "C") else t for n, t in tensors.items()
    }
    scan = Scan(**half, delta_softplus=True, return_last_state=True)
    assert op.run(scan, "cuda")[1].dtype == torch.float32
    assert activations == ["bf16"]  # no copy in float32 for the sake of the state
    for masked, reverse, gated in itertools.product([False, True], repeat=3):
        flags = {"mask_current": masked, "reverse": reverse, "return_last_state": True}
        given = {name: t for name, t in tensors.items() if gated or name != "z"}
        results = []
        for dtype in (torch.float32, torch.float64):
            leaves = {name: t.to(dtype).requires_grad_() for name, t in given.items()}
            scan = Scan(**leaves, delta_softplus=True, **flags)
            exact = dtype == torch.float64
            out, last = scan_reference(scan) if exact else op.run(scan, "cuda")
            loss = out.square().sum() + (last * dlast.to(dtype)).sum()
            results.append([out, last, *torch.autograd.grad(loss, list(leaves.values()))])
        for found, expected in zip(*results, strict=True):
            atol = 1e-5 * float(expected.detach().abs().max())
            torch.testing.assert_close(found.double(), expected, rtol=0, atol=atol)
