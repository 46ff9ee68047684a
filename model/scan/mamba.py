"""The scan on the stock mamba-ssm CUDA kernel, which knows neither a start state nor a mask.

Two identities make it exact. A state that starts at s is a zero state after one virtual token with
u = s, delta = 1, B = 1, C = 0, whose output is dropped. A masked read-out is the ordinary one less
the token's own contribution delta u <B, C>, and zero at the first token. Gradients follow by
autograd. Inputs are float32: delta = 1 must be exact.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.problem import Direction, Scan

# (u, delta, A, B, C) -> read-out (B, D, L), from a zero state, without skip, gate or softplus.
ZeroStartScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def kernel() -> ZeroStartScan:
    """The CUDA kernel of the installed mamba-ssm package."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return lambda u, delta, A, B, C: selective_scan_fn(u, delta, A, B, C)


def run(scan: Scan, zero_start: ZeroStartScan) -> Tensor:
    """``scan`` by way of a kernel that starts at zero; (B, D, L) in the dtype of u."""
    dtype = scan.state_dtype
    total = torch.stack([_read_out(scan, d, zero_start) for d in scan.directions()]).sum(0)
    if scan.z is not None:
        total = total * F.silu(scan.z.to(dtype))
    return total.to(scan.u.dtype)


def _read_out(scan: Scan, direction: Direction, zero_start: ZeroStartScan) -> Tensor:
    dtype = scan.state_dtype
    u, delta, B, C = (
        tensor.to(dtype).flip(-1) if direction.reverse else tensor.to(dtype)
        for tensor in (direction.u, direction.delta, direction.B, direction.C)
    )
    if direction.delta_bias is not None:
        delta = delta + direction.delta_bias.to(dtype)[:, None]
    if scan.delta_softplus:
        delta = F.softplus(delta)
    arguments = (u, delta, direction.A.to(dtype), B, C)
    if scan.first_token:
        y = zero_start(*_with_virtual_token(*arguments))[:, :, 1:]
    else:
        y = zero_start(*(tensor.contiguous() for tensor in arguments))
    if direction.mask_current:
        own = delta * u * (B * C).sum(1, keepdim=True)
        y = F.pad((y - own)[:, :, 1:], (1, 0))
    if direction.D is not None:
        y = y + direction.D.to(dtype)[:, None] * u
    return y.flip(-1) if direction.reverse else y


def _with_virtual_token(
    u: Tensor, delta: Tensor, A: Tensor, B: Tensor, C: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.cat((u[:, :, :1], u), dim=2),
        F.pad(delta, (1, 0), value=1.0),
        A.contiguous(),
        F.pad(B, (1, 0), value=1.0),
        F.pad(C, (1, 0), value=0.0),
    )
