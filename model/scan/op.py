"""The scan as registered PyTorch operators, so that autograd and torch.compile know it.

One forward and one backward operator serve every fused backend; ``backend`` selects the kernels.
Autocast rule: tensors keep the dtype they arrive in and autocast is off inside, because A, D, the
bias and the state must stay float32 whatever the inputs are. Triton launches on the current device:
that of the inputs is made current.
"""

from collections.abc import Sequence
from dataclasses import fields
from typing import Any, Protocol

import torch
from torch import Tensor

from model.scan import chunked, cpu
from model.scan.problem import Scan, token_major

_NAMES = tuple(field.name for field in fields(Scan))
TENSORS = _NAMES[: _NAMES.index("delta_softplus")]


class Kernels(Protocol):
    """A fused backend: a module with these functions."""

    def states_shape(
        self, passes: int, batch: int, channels: int, length: int, size: int
    ) -> Sequence[int]:
        """Shape of the states that forward keeps for backward."""
        ...

    def forward(self, scan: Scan, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
        """out (B, D, L), pre-gate sum (B, D, L), and the kept states."""
        ...

    def backward(
        self, scan: Scan, dout: Tensor, pre_gate: Tensor, states: Tensor
    ) -> dict[str, Tensor]:
        """Gradients by argument name, in any floating dtype and layout."""
        ...


def kernels(backend: str) -> Kernels:
    """The module behind the name of a fused backend."""
    if backend == "cuda":
        from model.scan.cuda import scan as cuda_scan

        return cuda_scan
    modules: dict[str, Kernels] = {"chunked": chunked, "cpu": cpu}
    return modules[backend]


def run(scan: Scan, backend: str) -> Tensor:
    """Run ``scan`` with the kernels of ``backend``; differentiable once."""
    tensors = [tensor for _, tensor in scan.tensors()]
    keep = torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors)
    out: Tensor = forward_op(*(getattr(scan, name) for name in _NAMES), backend, keep)[0]
    return out


# The name tells the layout of the kept states, as a test makes sure: torch.compile keeps compiled
# graphs on disk, which know the shapes that the operator of this name returned.
@torch.library.custom_op("videomambapro::scan_v3", mutates_args=())
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
    delta_softplus: bool,
    first_token: bool,
    mask_current: bool,
    reverse: bool,
    backend: str,
    keep: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    arguments = locals()
    scan = Scan(**{name: arguments[name] for name in _NAMES})
    with torch.autocast(u.device.type, enabled=False), torch.cuda.device_of(u):
        return kernels(backend).forward(scan, keep)


@forward_op.register_fake
def _forward_fake(*arguments: Any) -> tuple[Tensor, Tensor, Tensor]:
    *values, backend, keep = arguments
    scan = Scan(**dict(zip(_NAMES, values, strict=True)))
    batch, channels, length, size = scan.shape
    u, dtype = scan.u, scan.state_dtype
    out = token_major(batch, channels, length, u, u.dtype)
    if not keep:
        return out, u.new_empty(0, dtype=dtype), u.new_empty(0, dtype=dtype)
    pre_gate = (
        u.new_empty(0, dtype=dtype)
        if scan.z is None
        else token_major(batch, channels, length, u, dtype)
    )
    passes = 1 if scan.A_b is None else 2
    shape = kernels(backend).states_shape(passes, batch, channels, length, size)
    return out, pre_gate, u.new_empty(shape, dtype=dtype)


@torch.library.custom_op("videomambapro::scan_backward", mutates_args=())
def backward_op(
    dout: Tensor,
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
    delta_softplus: bool,
    first_token: bool,
    mask_current: bool,
    reverse: bool,
    backend: str,
) -> list[Tensor]:
    """Gradients of the tensors that are present, in the order of the arguments."""
    arguments = locals()
    scan = Scan(**{name: arguments[name] for name in _NAMES})
    with torch.autocast(u.device.type, enabled=False), torch.cuda.device_of(u):
        grads = kernels(backend).backward(scan, dout, pre_gate, states)
    return [_like(grads[name], tensor) for name, tensor in scan.tensors()]


@backward_op.register_fake
def _backward_fake(dout: Tensor, pre_gate: Tensor, states: Tensor, *arguments: Any) -> list[Tensor]:
    scan = Scan(**dict(zip(_NAMES, arguments[:-1], strict=True)))
    return [_grad_memory(tensor) for _, tensor in scan.tensors()]


def _grad_memory(tensor: Tensor) -> Tensor:
    """Gradients are dense: tokens-major for (B, D, L) and (B, N, L), as the kernels write them."""
    if tensor.dim() == 3:
        batch, channels, length = tensor.shape
        return token_major(batch, channels, length, tensor, tensor.dtype)
    return tensor.new_empty(tensor.shape)


def _like(grad: Tensor, tensor: Tensor) -> Tensor:
    """``grad`` in the dtype of ``tensor`` and the layout promised by ``_grad_memory``."""
    memory = _grad_memory(tensor)
    if grad.dtype == memory.dtype and grad.stride() == memory.stride():
        return grad
    return memory.copy_(grad)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    tensors, flags = inputs[: len(TENSORS)], inputs[len(TENSORS) : len(_NAMES)]
    ctx.flags, ctx.backend = flags, inputs[len(_NAMES)]
    _, pre_gate, states = output
    ctx.mark_non_differentiable(pre_gate, states)
    ctx.save_for_backward(pre_gate, states, *tensors)


def _backward(ctx: Any, dout: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    pre_gate, states, *tensors = ctx.saved_tensors
    grads = iter(backward_op(dout, pre_gate, states, *tensors, *ctx.flags, ctx.backend))
    present = [next(grads) if tensor is not None else None for tensor in tensors]
    return (*present, *[None] * (len(ctx.flags) + 2))


forward_op.register_autograd(_backward, setup_context=_setup_context)
