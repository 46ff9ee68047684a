"""The scan as one operator of PyTorch, for programs that leave this package: torch.export and ONNX.

A traced loop over tokens would be as long as the clip. `torch.scan` keeps it a loop, which ONNX has
too (its operator Scan), and needs none of our kernels to run.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

from model.scan.problem import Direction, Scan
from model.scan.reference import continuous_inputs, joined


def scan_portable(scan: Scan) -> tuple[Tensor, Tensor]:
    """Run ``scan``: out (B, D, L) in the dtype of u, and the last state (B, D, N)."""
    return joined(scan, [_read_out(scan, direction) for direction in scan.directions()])


def _read_out(scan: Scan, direction: Direction) -> tuple[Tensor, Tensor]:
    # With it comes torch._dynamo, which takes as long to import as torch.
    from torch._higher_order_ops.scan import scan as torch_scan

    dtype = scan.state_dtype
    u, delta, A = continuous_inputs(scan, direction)
    mixing = [_per_token(tensor.to(dtype), scan) for tensor in (direction.B, direction.C)]
    tokens = [tensor.movedim(-1, 0) for tensor in (u, delta, *mixing)]
    if direction.reverse:
        tokens = [tensor.flip(0) for tensor in tokens]
    state = tokens[0][0][:, :, None].expand(-1, -1, A.shape[1])  # (B, D, N)
    if not scan.first_token:
        state = torch.zeros_like(state)
    if direction.initial_state is not None:
        state = direction.initial_state.to(dtype)

    def step(state: Tensor, token: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        u_t, delta_t, B_t, C_t = token
        carried = torch.exp(delta_t[:, :, None] * A) * state
        state = carried + (delta_t * u_t)[:, :, None] * B_t
        visible = carried if direction.mask_current else state
        return state, (visible * C_t).sum(-1)

    last, outputs = cast(tuple[Tensor, Tensor], torch_scan(step, state.clone(), tuple(tokens)))
    if direction.mask_current:  # the first read-out is zero whatever the state started at
        outputs = torch.cat([torch.zeros_like(outputs[:1]), outputs[1:]])
    if direction.reverse:
        outputs = outputs.flip(0)
    y = outputs.movedim(0, -1)
    if direction.D is not None:
        y = y + direction.D.to(dtype)[:, None] * u
    return y, last


def _per_token(mixing: Tensor, scan: Scan) -> Tensor:
    """B or C, broadcastable to (B, D, N) at every token, tokens last."""
    _, channels, length, _ = scan.shape
    if mixing.dim() == 2:
        return mixing[None, :, :, None].expand(-1, -1, -1, length)
    groups = mixing.shape[1]
    return mixing if groups == 1 else mixing.repeat_interleave(channels // groups, dim=1)
