"""The selective scan of VideoMambaPro, token by token: the specification of every other backend.

The maths is that of arXiv 2312.00752 (selective scan) with the two changes of arXiv 2406.19006:
the state may start at the first scanned token, and a read-out may leave the current token out.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.problem import Direction, Scan


def scan_reference(scan: Scan) -> Tensor:
    """Run ``scan``; returns (B, D, L) in the dtype of u. Autograd gives every gradient."""
    total = torch.stack([_read_out(scan, direction) for direction in scan.directions()]).sum(0)
    if scan.z is not None:
        total = total * F.silu(scan.z.to(total.dtype))
    return total.to(scan.u.dtype)


def _read_out(scan: Scan, direction: Direction) -> Tensor:
    dtype = scan.state_dtype
    u, delta = direction.u.to(dtype), direction.delta.to(dtype)
    A, B, C = direction.A.to(dtype), direction.B.to(dtype), direction.C.to(dtype)
    if direction.delta_bias is not None:
        delta = delta + direction.delta_bias.to(dtype)[:, None]
    if scan.delta_softplus:
        delta = F.softplus(delta)

    # Unbound first: indexing inside the loop would make the backward pass quadratic in L.
    tokens = list(zip(u.unbind(2), delta.unbind(2), B.unbind(2), C.unbind(2), strict=True))
    if direction.reverse:
        tokens.reverse()
    first_u = tokens[0][0]
    state = first_u[:, :, None].expand(-1, -1, A.shape[1])  # (B, D, N)
    if not scan.first_token:
        state = torch.zeros_like(state)
    outputs = []
    for position, (u_t, delta_t, B_t, C_t) in enumerate(tokens):
        carried = torch.exp(delta_t[:, :, None] * A) * state
        state = carried + (delta_t * u_t)[:, :, None] * B_t[:, None, :]
        visible = carried if direction.mask_current else state
        output = (visible * C_t[:, None, :]).sum(-1)
        # The masked read-out of the first token is zero whatever the state started at.
        hidden = direction.mask_current and position == 0
        outputs.append(torch.zeros_like(output) if hidden else output)
    if direction.reverse:
        outputs.reverse()
    y = torch.stack(outputs, dim=2)
    return y if direction.D is None else y + direction.D.to(dtype)[:, None] * u
