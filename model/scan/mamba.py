"""The scan on the stock mamba-ssm CUDA kernel, which knows neither a start state nor a mask.

This is the one module that imports mamba-ssm, its block for benchmarks included.

Identities make it exact. A state that starts at s is a zero state after one virtual token with
u = s, delta = 1, B = 1, C = 0, whose output is dropped. A masked read-out is the ordinary one less
the token's own contribution delta u <B, C>, and zero at the first token. The last state is read out
by N virtual tokens with delta = 0, which change nothing, and the unit vectors as C. Gradients
follow by autograd. Inputs are cast to float32, since delta = 1 must be exact. A constant B or C
becomes one of a group per channel, which takes B * D * N * L floats.
"""

from collections.abc import Callable
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.scan.problem import Direction, Scan, ScanError

# (u, delta, A, B, C), the last two (B, G, N, L) -> read-out (B, D, L), from a zero state, without
# skip, gate or softplus.
ZeroStartScan = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]


def kernel() -> ZeroStartScan:
    """The CUDA kernel of the installed mamba-ssm package."""
    scan = stock_kernel()
    return lambda u, delta, A, B, C: scan(u, delta, A, B, C)


def stock_kernel() -> Callable[..., Tensor]:
    """`selective_scan_fn` of the package, with the arguments that its documentation names."""
    from mamba_ssm.ops.selective_scan_interface import selective_scan_fn

    return cast(Callable[..., Tensor], selective_scan_fn)


def stock_block() -> type[nn.Module]:
    """The package's `Mamba` block on its fast path, which needs causal-conv1d."""
    import causal_conv1d  # noqa: F401  # without it the block takes a slow road in silence
    from mamba_ssm.modules.mamba_simple import Mamba

    return cast(type[nn.Module], Mamba)


def why_unavailable(load: Callable[[], object] | None = None) -> str | None:
    """What keeps the kernel, or what `load` imports in its place, from loading; None when it loads.

    Only an import proves it: an extension that was built for another torch is found, and fails.
    """
    try:
        (load or kernel)()
    except Exception as error:  # a compiled extension can fail in any way
        return f"{type(error).__name__}: {' '.join(str(error).split())}"
    return None


def run(scan: Scan, zero_start: ZeroStartScan) -> tuple[Tensor, Tensor]:
    """Run ``scan`` on a kernel that starts at zero; see ``scan_reference``."""
    if scan.initial_state is not None:
        raise ScanError("scan: backend 'mamba_ssm' takes no tensor as initial_state")
    dtype = scan.state_dtype
    passes = [_read_out(scan, direction, zero_start) for direction in scan.directions()]
    total = torch.stack([y for y, _ in passes]).sum(0)
    if scan.z is not None:
        total = total * F.silu(scan.z.to(dtype))
    return total.to(scan.u.dtype), passes[-1][1]


def _read_out(scan: Scan, direction: Direction, zero_start: ZeroStartScan) -> tuple[Tensor, Tensor]:
    dtype = scan.state_dtype
    u, delta, B, C = (
        tensor.to(dtype).flip(-1) if direction.reverse else tensor.to(dtype)
        for tensor in (direction.u, direction.delta, *_grouped(scan, direction))
    )
    if direction.delta_bias is not None:
        delta = delta + direction.delta_bias.to(dtype)[:, None]
    if scan.delta_softplus:
        delta = F.softplus(delta)
    start = int(scan.first_token)
    reads = scan.A.shape[1] if scan.return_last_state else 0
    end = start + u.shape[2]
    read_out = zero_start(
        torch.cat((u[:, :, :start], F.pad(u, (0, reads))), dim=2),
        F.pad(F.pad(delta, (start, 0), value=1.0), (0, reads)),
        direction.A.to(dtype).contiguous(),
        F.pad(F.pad(B, (start, 0), value=1.0), (0, reads)),
        torch.cat((F.pad(C, (start, 0)), _unit_vectors(C, reads)), dim=3),
    )
    y, last_state = read_out[:, :, start:end], read_out[:, :, end:]
    if direction.mask_current:
        own = (B * C).sum(2).repeat_interleave(u.shape[1] // B.shape[1], dim=1)
        y = F.pad((y - delta * u * own)[:, :, 1:], (1, 0))
    if direction.D is not None:
        y = y + direction.D.to(dtype)[:, None] * u
    return (y.flip(-1) if direction.reverse else y), last_state


def _unit_vectors(C: Tensor, count: int) -> Tensor:
    """The first ``count`` unit vectors of states, for every sample and group of ``C``."""
    batch, groups, size, _ = C.shape
    return torch.eye(size, count, dtype=C.dtype, device=C.device).expand(batch, groups, -1, -1)


def _grouped(scan: Scan, direction: Direction) -> tuple[Tensor, ...]:
    """B and C (B, G, N, L); where one is constant, both have a group per channel."""
    batch, channels, length, _ = scan.shape
    pair = (direction.B, direction.C)
    if all(tensor.dim() == 4 for tensor in pair):
        return pair
    return tuple(
        tensor[None, :, :, None].expand(batch, -1, -1, length)
        if tensor.dim() == 2
        else tensor.repeat_interleave(channels // tensor.shape[1], dim=1)
        for tensor in pair
    )
