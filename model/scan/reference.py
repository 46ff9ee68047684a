"""The selective scan of VideoMambaPro, token by token: the specification of every other backend.

The maths is that of arXiv 2312.00752 (selective scan) with the two changes of arXiv 2406.19006:
the state may start at the first scanned token, and a read-out may leave the current token out.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.problem import Direction, Scan


def scan_reference(scan: Scan) -> tuple[Tensor, Tensor]:
    """Run ``scan``: out (B, D, L) in the dtype of u, and the last state (B, D, N).

    Autograd gives every gradient. Of two directions the last state is that of the backward one.
    """
    return joined(scan, [_read_out(scan, direction) for direction in scan.directions()])


def joined(scan: Scan, passes: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """The result of ``scan`` from the read-out (B, D, L) and last state of each direction."""
    total = torch.stack([y for y, _ in passes]).sum(0)
    if scan.z is not None:
        total = total * F.silu(scan.z.to(total.dtype))
    return total.to(scan.u.dtype), passes[-1][1]


def continuous_inputs(scan: Scan, direction: Direction) -> tuple[Tensor, Tensor, Tensor]:
    """u (B, D, L), the step sizes (B, D, L) and A (D, N) in the dtype of the state."""
    dtype = scan.state_dtype
    u, delta, A = direction.u.to(dtype), direction.delta.to(dtype), direction.A.to(dtype)
    if direction.delta_bias is not None:
        delta = delta + direction.delta_bias.to(dtype)[:, None]
    return u, F.softplus(delta) if scan.delta_softplus else delta, A


def _read_out(scan: Scan, direction: Direction) -> tuple[Tensor, Tensor]:
    dtype = scan.state_dtype
    u, delta, A = continuous_inputs(scan, direction)
    B, C = (_per_token(tensor.to(dtype), scan) for tensor in (direction.B, direction.C))

    # Indexing inside the loop would make the backward pass quadratic in L, so tokens are unbound.
    tokens = list(zip(u.unbind(2), delta.unbind(2), B, C, strict=True))
    if direction.reverse:
        tokens.reverse()
    first_u = tokens[0][0]
    state = first_u[:, :, None].expand(-1, -1, A.shape[1])  # (B, D, N)
    if not scan.first_token:
        state = torch.zeros_like(state)
    if direction.initial_state is not None:
        state = direction.initial_state.to(dtype)
    outputs = []
    for position, (u_t, delta_t, B_t, C_t) in enumerate(tokens):
        carried = torch.exp(delta_t[:, :, None] * A) * state
        state = carried + (delta_t * u_t)[:, :, None] * B_t
        visible = carried if direction.mask_current else state
        output = (visible * C_t).sum(-1)
        # The masked read-out of the first token is zero whatever the state started at.
        hidden = direction.mask_current and position == 0
        outputs.append(torch.zeros_like(output) if hidden else output)
    if direction.reverse:
        outputs.reverse()
    y = torch.stack(outputs, dim=2)
    if direction.D is not None:
        y = y + direction.D.to(dtype)[:, None] * u
    return y, state


def _per_token(mixing: Tensor, scan: Scan) -> Sequence[Tensor]:
    """B or C of every token, broadcastable to (B, D, N)."""
    _, channels, length, _ = scan.shape
    if mixing.dim() == 2:
        return [mixing] * length
    groups = mixing.shape[1]
    spread = mixing if groups == 1 else mixing.repeat_interleave(channels // groups, dim=1)
    return spread.unbind(3)
