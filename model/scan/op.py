"""The scan for autograd, and as registered PyTorch operators for whatever traces it.

Plain eager code goes through an ``autograd.Function`` (see ``eager.py``): with 23 arguments, the
dispatcher takes as long as all else that a call does on the host. One forward and one backward
operator serve every fused backend; ``backend`` selects the kernels.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from model.scan import chunked, cpu
from model.scan.eager import as_given, is_watched
from model.scan.problem import NAMES, OPTIONS, TENSORS, Forward, Scan, token_major

BACKENDS = ("cuda", "cpu", "chunked")


class ScanKernels(Protocol):
    """A fused backend: a module with these functions."""

    def states_shape(self, scan: Scan) -> Sequence[int]:
        """Shape of the states that forward keeps for backward."""
        ...

    def forward(self, scan: Scan, keep: bool) -> Forward:
        """Run ``scan``; when ``keep`` is true, also keep what backward needs."""
        ...

    def backward(
        self,
        scan: Scan,
        dout: Tensor,
        dlast_state: Tensor | None,
        pre_gate: Tensor,
        states: Tensor,
        into: Mapping[str, Tensor] | None = None,
    ) -> dict[str, Tensor]:
        """Gradients by argument name, in any floating dtype and layout.

        Those of B and C are (B, G, N, L) where the argument is (B, N, L). ``dlast_state`` is None
        when nothing depends on the last state. ``into`` holds memory for some of the gradients, of
        the argument's shape and any strides; those are written there.
        """
        ...


def kernels(backend: str) -> ScanKernels:
    """The module behind the name of a backend, one of ``BACKENDS``."""
    if backend == "cuda":
        from model.scan.cuda import scan as cuda_scan

        return cuda_scan
    modules: dict[str, ScanKernels] = {"chunked": chunked, "cpu": cpu}
    return modules[backend]


def run(scan: Scan, backend: str) -> tuple[Tensor, Tensor]:
    """Run ``scan`` on the kernels of ``backend``: out and last state, differentiable once."""
    tensors = [getattr(scan, name) for name in TENSORS]
    keep = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)
    if is_watched():
        options = [getattr(scan, name) for name in OPTIONS]
        done = forward_op(*tensors, *options, backend, keep)
        return done[0], done[3]
    if keep:
        found: tuple[Tensor, Tensor] = _Run.apply(scan, backend, *tensors)  # type: ignore[no-untyped-call]
        return found
    with as_given(scan.u):
        direct = kernels(backend).forward(scan, keep=False)
    return direct.out, direct.last_state


class _Run(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, scan: Scan, backend: str, *tensors: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        with as_given(scan.u):
            out, pre_gate, states, last_state = kernels(backend).forward(scan, keep=True)
        if not scan.return_last_state:
            ctx.mark_non_differentiable(last_state)
        ctx.backend, ctx.options = backend, [getattr(scan, name) for name in OPTIONS]
        ctx.set_materialize_grads(False)  # else autograd fills zeros for an unused last state
        ctx.save_for_backward(pre_gate, states, *tensors)
        return out, last_state

    @staticmethod
    @once_differentiable
    def backward(
        ctx: Any, dout: Tensor | None, dlast_state: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        pre_gate, states, *tensors = ctx.saved_tensors
        scan = Scan(**dict(zip(NAMES, (*tensors, *ctx.options), strict=True)))
        if dout is None:  # only the last state is used
            dout = torch.zeros_like(scan.u)
        with as_given(scan.u):
            grads = kernels(ctx.backend).backward(scan, dout, dlast_state, pre_gate, states)
        present = dict(scan.tensors())
        fitted = {name: _fitted(grads[name], tensor) for name, tensor in present.items()}
        return (None, None, *(fitted.get(name) for name in TENSORS))


def _fitted(grad: Tensor, tensor: Tensor) -> Tensor:
    """``grad`` in the dtype and shape of ``tensor``."""
    if grad.dim() > tensor.dim():
        grad = grad.squeeze(1)  # the one group of a B or C without groups
    return grad.to(tensor.dtype)


# The operators' names carry a version, which changes with the arguments and with the layout of the
# kept states: torch.compile keeps graphs on disk, which expect what an operator of that name gave.
@torch.library.custom_op("videomambapro::scan_v4", mutates_args=())
def forward_op(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    A_b: Tensor | None,
    u_b: Tensor | None,
    delta_b: Tensor | None,
    B_b: Tensor | None,
    C_b: Tensor | None,
    D_b: Tensor | None,
    delta_bias_b: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    first_token: bool,
    mask_current: bool,
    reverse: bool,
    return_last_state: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    arguments = locals()
    scan = Scan(**{name: arguments[name] for name in NAMES})
    with as_given(u):
        return kernels(backend).forward(scan, keep)


@forward_op.register_fake
def _forward_fake(*arguments: Any) -> Forward:
    *values, backend, keep = arguments
    scan = Scan(**dict(zip(NAMES, values, strict=True)))
    batch, channels, length, size = scan.shape
    u, dtype = scan.u, scan.state_dtype

    def absent() -> Tensor:
        return u.new_empty(0, dtype=dtype)

    gated = keep and scan.z is not None
    return Forward(
        token_major(batch, channels, length, u, u.dtype),
        token_major(batch, channels, length, u, dtype) if gated else absent(),
        u.new_empty(kernels(backend).states_shape(scan), dtype=dtype) if keep else absent(),
        u.new_empty((batch, channels, size), dtype=dtype) if scan.return_last_state else absent(),
    )


@torch.library.custom_op("videomambapro::scan_backward_v4", mutates_args=())
def backward_op(
    dout: Tensor,
    dlast_state: Tensor | None,
    pre_gate: Tensor,
    states: Tensor,
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    z: Tensor | None,
    delta_bias: Tensor | None,
    A_b: Tensor | None,
    u_b: Tensor | None,
    delta_b: Tensor | None,
    B_b: Tensor | None,
    C_b: Tensor | None,
    D_b: Tensor | None,
    delta_bias_b: Tensor | None,
    initial_state: Tensor | None,
    delta_softplus: bool,
    first_token: bool,
    mask_current: bool,
    reverse: bool,
    return_last_state: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of the tensors that are present, in the order of the arguments."""
    arguments = locals()
    scan = Scan(**{name: arguments[name] for name in NAMES})
    with as_given(u):
        grads = kernels(backend).backward(scan, dout, dlast_state, pre_gate, states)
    return [_like(grads[name], tensor, name) for name, tensor in scan.tensors()]


@backward_op.register_fake
def _backward_fake(*arguments: Any) -> list[Tensor]:
    scan = Scan(**dict(zip(NAMES, arguments[4:-1], strict=True)))
    return [_grad_memory(tensor, name) for name, tensor in scan.tensors()]


def _grad_memory(tensor: Tensor, name: str) -> Tensor:
    """Dense memory for a gradient, token-major for a sequence, as the kernels write it."""
    if tensor.dim() < 3 or name == "initial_state":
        return tensor.new_empty(tensor.shape)
    batch, *inner, length = tensor.shape
    return tensor.new_empty((batch, length, *inner)).movedim(1, -1)


def _like(grad: Tensor, tensor: Tensor, name: str) -> Tensor:
    """``grad`` in the dtype of ``tensor`` and the layout promised by ``_grad_memory``."""
    grad, memory = _fitted(grad, tensor), _grad_memory(tensor, name)
    if grad.stride() == memory.stride():
        return grad
    return memory.copy_(grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, flags = inputs[: len(TENSORS)], inputs[len(TENSORS) : len(NAMES)]
    ctx.flags, ctx.backend = flags, inputs[len(NAMES)]
    _, pre_gate, states, last_state = output
    ctx.mark_non_differentiable(pre_gate, states)
    if not flags[-1]:
        ctx.mark_non_differentiable(last_state)
    ctx.set_materialize_grads(False)  # else autograd fills zeros of the kept states' size
    ctx.save_for_backward(pre_gate, states, *tensors)


def _backward(ctx: Any, dout: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
    pre_gate, states, *tensors = ctx.saved_tensors
    dlast_state = others[-1]
    if dout is None:  # only the last state is used
        dout = torch.zeros_like(tensors[0])
    grads = iter(
        backward_op(dout, dlast_state, pre_gate, states, *tensors, *ctx.flags, ctx.backend)
    )
    present = [next(grads) if tensor is not None else None for tensor in tensors]
    return (*present, *[None] * (len(ctx.flags) + 2))


forward_op.register_autograd(_backward, setup_context=_setup_context)
