"""Every backend computes what the reference computes, values and gradients."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from model.scan import available_backends, bidirectional_scan, op, selective_scan
from model.scan.problem import TENSORS, Scan

FUSED = [name for name in available_backends() if name != "reference"]
Make = Callable[..., dict[str, Tensor]]
Check = Callable[..., None]


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.usefixtures("poisoned_memory")
@settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    shape=st.tuples(
        st.integers(1, 3),
        st.integers(1, 70),
        st.integers(1, 150),  # over several chunks of every backend
        st.sampled_from([1, 3, 8, 16, 32]),
    ),
    layout=st.sampled_from(["token_major", "channel_major", "strided"]),
    separate=st.booleans(),
    gated=st.booleans(),
    delta_softplus=st.booleans(),
    mask_backward=st.booleans(),
    initial_state=st.sampled_from(["zero", "first_token"]),
    scales=st.sampled_from([(1.0, 1.0), (1e-3, 16.0), (60.0, 1.0), (3.0, 1e4)]),
)
def test_bidirectional_sweep(
    random_scan: Make,
    assert_agrees: Check,
    backend: str,
    shape: tuple[int, int, int, int],
    layout: str,
    separate: bool,
    gated: bool,
    delta_softplus: bool,
    mask_backward: bool,
    initial_state: str,
    scales: tuple[float, float],
) -> None:
    delta_scale, decay_scale = scales
    tensors = random_scan(
        shape,
        separate=separate,
        gated=gated,
        layout=layout,
        delta_scale=delta_scale,
        decay_scale=decay_scale,
    )
    if not delta_softplus:  # a step is positive, or the state grows without bound
        for name in ("delta", "delta_b", "delta_bias", "delta_bias_b"):
            if name in tensors:
                tensors[name] = tensors[name].detach().abs()
    assert_agrees(
        bidirectional_scan,
        tensors,
        backend=backend,
        delta_softplus=delta_softplus,
        mask_backward=mask_backward,
        initial_state=initial_state,
    )


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mask_current", [False, True])
def test_one_direction(
    random_scan: Make, assert_agrees: Check, backend: str, reverse: bool, mask_current: bool
) -> None:
    tensors = random_scan((2, 40, 37, 16))
    del tensors["A_b"]
    assert_agrees(
        selective_scan,
        tensors,
        backend=backend,
        reverse=reverse,
        mask_current=mask_current,
        delta_softplus=True,
        initial_state="first_token",
    )


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("own", ["u", "delta", "B", "C", "D", "delta_bias"])
def test_one_tensor_is_the_backward_direction_s_own(
    random_scan: Make, assert_agrees: Check, backend: str, own: str
) -> None:
    tensors = random_scan((2, 40, 37, 8))
    tensors[f"{own}_b"] = random_scan((2, 40, 37, 8), seed=1)[own]
    assert_agrees(bidirectional_scan, tensors, backend=backend)


@pytest.mark.parametrize("backend", ["reference", *FUSED])
def test_reverse_is_flip_scan_flip(random_scan: Make, backend: str) -> None:
    tensors = random_scan((2, 5, 19, 4))
    del tensors["A_b"]
    options: dict[str, Any] = {"initial_state": "first_token", "backend": backend}
    flipped = {
        name: tensor.flip(-1) if tensor.dim() == 3 else tensor for name, tensor in tensors.items()
    }
    expected = selective_scan(**flipped, **options).flip(-1)
    torch.testing.assert_close(selective_scan(**tensors, reverse=True, **options), expected)


@pytest.mark.parametrize("separate", [False, True])
def test_gradcheck(random_scan: Make, separate: bool) -> None:
    tensors = random_scan((1, 2, 4, 2), separate=separate, dtype=torch.float64)

    def scan(*values: Tensor) -> Tensor:
        return bidirectional_scan(**dict(zip(tensors, values, strict=True)), backend="chunked")

    assert torch.autograd.gradcheck(scan, tuple(tensors.values()))


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("separate", [False, True])
def test_opcheck(random_scan: Make, backend: str, separate: bool) -> None:
    tensors = random_scan((1, 18, 20, 8), separate=separate)
    present = [tensors.get(name) for name in TENSORS]
    result = torch.library.opcheck(
        op.forward_op, (*present, True, True, True, False, False, backend, True)
    )
    assert set(result.values()) == {"SUCCESS"}


@pytest.mark.parametrize("backend", FUSED)
@pytest.mark.parametrize("separate", [False, True])
def test_the_operators_give_what_eager_code_gets(
    random_scan: Make, backend: str, separate: bool
) -> None:
    """A dispatch mode, such as one that counts, must see operators; they change no bit."""
    tensors = random_scan((2, 18, 20, 8), separate=separate)

    def results() -> list[Tensor]:
        out = bidirectional_scan(**tensors, backend=backend)
        return [out, *torch.autograd.grad(out.sum(), list(tensors.values()))]

    with OperatorNames() as seen:
        watched = results()
    assert {"videomambapro.scan_v4", "videomambapro.scan_backward_v4"} <= seen.names
    assert all(torch.equal(a, b) for a, b in zip(watched, results(), strict=True))


class OperatorNames(TorchDispatchMode):
    """Collects the names of operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(func).removesuffix(".default"))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("backend", FUSED)
def test_nothing_is_kept_without_grad(random_scan: Make, backend: str) -> None:
    tensors = random_scan((1, 18, 20, 8))
    with torch.no_grad():
        quiet = bidirectional_scan(**tensors, backend=backend)
    assert not quiet.requires_grad
    torch.testing.assert_close(quiet, bidirectional_scan(**tensors, backend=backend).detach())


@pytest.mark.parametrize("backend", FUSED)
def test_saved_memory(random_scan: Make, backend: str) -> None:
    """At M's width the graph keeps at most 8 tensors of B * D * L floats."""
    tensors = random_scan((1, 1152, 256, 16))
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        bidirectional_scan(**tensors, backend=backend)
    assert sum(saved.values()) <= 8 * 1152 * 256 * 4


@pytest.mark.parametrize("backend", FUSED)
def test_gradients_are_deterministic(random_scan: Make, backend: str) -> None:
    tensors = random_scan((2, 70, 50, 16))
    runs = [
        torch.autograd.grad(
            bidirectional_scan(**tensors, backend=backend).sum(), [*tensors.values()]
        )
        for _ in range(3)
    ]
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


def test_cpu_results_do_not_depend_on_threads(random_scan: Make) -> None:
    if "cpu" not in FUSED:
        pytest.skip("no C++ compiler (apt-get install g++)")
    tensors = random_scan((2, 70, 50, 16))
    before = torch.get_num_threads()
    runs = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        out = bidirectional_scan(**tensors, backend="cpu")
        runs.append((out, *torch.autograd.grad(out.sum(), [*tensors.values()])))
    torch.set_num_threads(before)
    for again in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(runs[0], again, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("backend", FUSED)
def test_half_precision_inputs(
    random_scan: Make, assert_agrees: Check, backend: str, dtype: torch.dtype
) -> None:
    """The state is float32, so the error is from rounding the results, not from the recurrence."""
    tensors = random_scan((1, 20, 300, 8))
    assert_agrees(
        bidirectional_scan, tensors, backend=backend, dtype=dtype, tolerance=torch.finfo(dtype).eps
    )


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
def test_bf16_over_64_frames(random_scan: Make, assert_agrees: Check, backend: str) -> None:
    """64 frames at 224 px: 12,545 tokens; errors must not grow along the sequence."""
    tensors = random_scan((1, 4, 64 * 196 + 1, 8), delta_scale=0.1)
    tensors["delta_bias"] = torch.full((4,), -4.0)
    assert_agrees(
        bidirectional_scan,
        tensors,
        backend=backend,
        dtype=torch.bfloat16,
        tolerance=torch.finfo(torch.bfloat16).eps,
    )


def test_autocast_keeps_the_dtypes_it_is_given(random_scan: Make) -> None:
    tensors = random_scan((1, 20, 30, 8))
    mixed = {
        name: tensor.bfloat16() if tensor.dim() == 3 else tensor for name, tensor in tensors.items()
    }
    for backend in FUSED:
        outside = bidirectional_scan(**mixed, backend=backend)
        with torch.autocast("cpu", torch.bfloat16):
            inside = bidirectional_scan(**mixed, backend=backend)
        assert inside.dtype == torch.bfloat16
        assert torch.equal(inside, outside)


@pytest.mark.slow
@pytest.mark.parametrize("backend", FUSED)
def test_compiles_without_graph_break(random_scan: Make, backend: str) -> None:
    tensors = random_scan((1, 18, 20, 8))

    def loss(values: dict[str, Tensor]) -> Tensor:
        return bidirectional_scan(**values, backend=backend).square().sum()

    compiled = torch.compile(loss, fullgraph=True, backend="aot_eager")
    expected = torch.autograd.grad(loss(tensors), [*tensors.values()])
    found = torch.autograd.grad(compiled(tensors), [*tensors.values()])
    for a, b in zip(expected, found, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize(
    ("backend", "shape"),
    [
        ("cpu", (2, 3, 2, 3, 512)),
        ("chunked", (2, 3, 3, 40, 16)),
        ("cuda", (3, 2, 10, 4, 40, 4)),
    ],
)
def test_another_layout_of_the_kept_states_needs_another_name(
    random_scan: Make, backend: str, shape: tuple[int, ...]
) -> None:
    """Without a new name, a graph that torch.compile kept from an earlier version would fail."""
    if backend == "cpu" and "cpu" not in FUSED:
        pytest.skip("no C++ compiler (apt-get install g++)")
    assert op.forward_op._qualname == "videomambapro::scan_v4"
    scan = Scan(**random_scan((3, 40, 150, 16)))
    assert tuple(op.kernels(backend).states_shape(scan)) == shape
