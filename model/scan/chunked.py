"""The scan in plain PyTorch, a chunk of tokens at a time, with its own backward pass.

Everything but the recurrence is vectorised over a chunk. Backward recomputes a chunk's states from
the state at its start, so nothing of size B*D*L*N is ever kept. It runs on any device and dtype.

Inside this file the tokens come first: (T, B, D), and (T, B, G, N) for the B and C of G groups of
channels, in scan order within a chunk. A constant B or C is (1, 1, D, N): one group per channel.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from model.scan.problem import Direction, Forward, Scan, placed, token_major

CHUNK = 64


def states_shape(scan: Scan) -> Sequence[int]:
    """Shape of the kept states: the state that each chunk starts from."""
    batch, channels, length, size = scan.shape
    return len(scan.directions()), (length + CHUNK - 1) // CHUNK, batch, channels, size


def forward(scan: Scan, keep: bool) -> Forward:
    """See ``op.ScanKernels``."""
    batch, channels, length, _ = scan.shape
    dtype = scan.state_dtype
    total = scan.u.new_zeros((length, batch, channels), dtype=dtype)
    pre_gate, states, last_state = (scan.u.new_empty(0, dtype=dtype) for _ in range(3))
    passes = [_Pass(scan, direction).forward(total) for direction in scan.directions()]
    out = token_major(batch, channels, length, scan.u, scan.u.dtype)
    gate = None if scan.z is None else F.silu(_tokens_first(scan.z, dtype))
    out.copy_((total if gate is None else total * gate).permute(1, 2, 0))
    if keep and gate is not None:
        pre_gate = token_major(batch, channels, length, scan.u, dtype)
        pre_gate.copy_(total.permute(1, 2, 0))
    if keep:
        states = torch.stack([starts for starts, _ in passes])
    if scan.return_last_state:
        last_state = passes[0][1]
    return Forward(out, pre_gate, states, last_state)


def backward(
    scan: Scan,
    dout: Tensor,
    dlast_state: Tensor | None,
    pre_gate: Tensor,
    states: Tensor,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """See ``op.ScanKernels``."""
    dtype = scan.state_dtype
    grads: dict[str, Tensor] = {}
    dy = _tokens_first(dout, dtype)
    if scan.z is not None:
        z = _tokens_first(scan.z, dtype)
        gate = torch.sigmoid(z)
        slope = gate * (1 + z * (1 - gate))
        grads["z"] = (dy * _tokens_first(pre_gate, dtype) * slope).permute(1, 2, 0)
        dy = dy * z * gate
    for direction, kept in zip(scan.directions(), states, strict=True):
        for name, grad in _Pass(scan, direction).backward(dy, dlast_state, kept).items():
            owner = scan.own(name, direction.suffix)
            grads[owner] = grads[owner] + grad if owner in grads else grad
    return placed(grads, into)


def _tokens_first(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    return tensor.movedim(-1, 0).to(dtype)


def _grouped(values: Tensor, mixing: Tensor) -> Tensor:
    """(T, B, D, ...) as (T, B, G, D / G, ...) for the groups of ``mixing`` (T, B, G, N)."""
    outer, inner = values.shape[:2], values.shape[3:]
    return values.reshape(*outer, mixing.shape[2], -1, *inner)


def _contract(states: Tensor, mixing: Tensor) -> Tensor:
    """Sum over N of states (T, B, D, N) times what ``mixing`` has for each channel: (T, B, D)."""
    return torch.matmul(_grouped(states, mixing), mixing[..., None]).flatten(2)


class _Pass:
    """One direction with its tensors laid out tokens first."""

    def __init__(self, scan: Scan, direction: Direction) -> None:
        dtype = scan.state_dtype
        self.direction = direction
        self.delta_softplus, self.first_token = scan.delta_softplus, scan.first_token
        self.u = _tokens_first(direction.u, dtype)
        self.delta_raw = _tokens_first(direction.delta, dtype)
        if direction.delta_bias is not None:
            self.delta_raw = self.delta_raw + direction.delta_bias.to(dtype)
        self.delta = F.softplus(self.delta_raw) if scan.delta_softplus else self.delta_raw
        self.A = direction.A.to(dtype)
        self.B, self.C = (
            mixing.to(dtype)[None, None] if mixing.dim() == 2 else _tokens_first(mixing, dtype)
            for mixing in (direction.B, direction.C)
        )
        self.D = None if direction.D is None else direction.D.to(dtype)

    def _chunks(self) -> Iterator[slice]:
        """Slices of tokens in scan order; see ``_take`` for the order within one."""
        length = len(self.u)
        starts = range(0, length, CHUNK)
        if self.direction.reverse:
            return (slice(max(0, length - s - CHUNK), length - s) for s in starts)
        return (slice(s, min(s + CHUNK, length)) for s in starts)

    def _take(self, tensor: Tensor, chunk: slice) -> Tensor:
        part = tensor[chunk]
        return part.flip(0) if self.direction.reverse else part

    def _take_mixing(self, name: str, chunk: slice) -> Tensor:
        mixing: Tensor = getattr(self, name)
        return mixing if self._is_constant(name) else self._take(mixing, chunk)

    def _is_constant(self, name: str) -> bool:
        mixing: Tensor = getattr(self.direction, name)
        return mixing.dim() == 2

    def _add_mixing(self, name: str, total: Tensor, chunk: slice, part: Tensor) -> None:
        """Add a chunk's gradient of B or C, ``part`` (T, B, G, N), to the whole one."""
        if self._is_constant(name):
            total += part.sum((0, 1))
        else:
            total[chunk] = self._take(part, slice(None))

    def _initial_state(self) -> Tensor:
        if self.direction.initial_state is not None:
            return self.direction.initial_state.to(self.u.dtype)
        first = self.u[-1 if self.direction.reverse else 0]
        state = first[:, :, None].expand(-1, -1, self.A.shape[1])
        return state if self.first_token else torch.zeros_like(state)

    def _states(self, chunk: slice, start: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Decay a_t, carried state a_t h_{t-1} and state h_t of a chunk, each (T, B, D, N)."""
        delta, u = self._take(self.delta, chunk), self._take(self.u, chunk)
        decay = torch.exp(delta[..., None] * self.A)
        B = self._take_mixing("B", chunk)
        state = (_grouped(delta * u, B)[..., None] * B[:, :, :, None]).flatten(2, 3)
        previous = start
        for decay_t, state_t in zip(decay.unbind(0), state.unbind(0), strict=True):
            state_t.addcmul_(decay_t, previous)
            previous = state_t
        carried = decay * torch.cat((start[None], state[:-1]))
        return decay, carried, state

    def forward(self, total: Tensor) -> tuple[Tensor, Tensor]:
        """Add the read-out to ``total`` (L, B, D).

        Returns the states before every chunk (chunks, B, D, N) and after the last one.
        """
        state = self._initial_state()
        starts = []
        for index, chunk in enumerate(self._chunks()):
            starts.append(state)
            _, carried, states = self._states(chunk, state)
            visible = carried if self.direction.mask_current else states
            y = _contract(visible, self._take_mixing("C", chunk))
            if self.direction.mask_current and index == 0:
                y[0] = 0
            total[chunk] += self._take(y, slice(None))
            state = states[-1].clone()
        if self.D is not None:
            total += self.D * self.u
        return torch.stack(starts), state

    def backward(
        self, dy_full: Tensor, dlast_state: Tensor | None, starts: Tensor
    ) -> dict[str, Tensor]:
        """Gradients of this direction's arguments for ``dy_full`` (L, B, D), before the gate."""
        masked = self.direction.mask_current
        du, ddelta = torch.zeros_like(self.u), torch.zeros_like(self.u)
        dA, dB, dC = (torch.zeros_like(t) for t in (self.A, self.B, self.C))
        # carry is the gradient that the chunk scanned after this one sends back to h_t
        carry = torch.zeros_like(starts[0]) if dlast_state is None else dlast_state
        for index, chunk in reversed(list(enumerate(self._chunks()))):
            decay, carried, states = self._states(chunk, starts[index])
            u, delta = self._take(self.u, chunk), self._take(self.delta, chunk)
            B, C = self._take_mixing("B", chunk), self._take_mixing("C", chunk)
            dy = self._take(dy_full, chunk)
            if masked and index == 0:
                dy = torch.cat((torch.zeros_like(dy[:1]), dy[1:]))
            # adjoint becomes the gradient of a_t h_{t-1}
            adjoint = (_grouped(dy, C)[..., None] * C[:, :, :, None]).flatten(2, 3)
            after = carry
            for decay_t, adjoint_t in zip(
                reversed(decay.unbind(0)), reversed(adjoint.unbind(0)), strict=True
            ):
                adjoint_t += after
                after = decay_t * adjoint_t
            written = adjoint  # the gradient of the token's own contribution
            if masked:
                written = torch.cat((decay[1:] * adjoint[1:], carry[None]))
            carry = after
            decayed = adjoint * carried
            du_delta = _contract(written, B)
            visible = _grouped(carried if masked else states, C)
            dC_chunk = torch.matmul(_grouped(dy, C)[..., None, :], visible).squeeze(-2)
            dB_chunk = torch.matmul(
                _grouped(delta * u, B)[..., None, :], _grouped(written, B)
            ).squeeze(-2)
            dA += (decayed * delta[..., None]).sum((0, 1))
            self._add_mixing("C", dC, chunk, dC_chunk)
            self._add_mixing("B", dB, chunk, dB_chunk)
            du[chunk] = self._take(delta * du_delta, slice(None))
            ddelta[chunk] = self._take(u * du_delta + (decayed * self.A).sum(-1), slice(None))
        if self.first_token:
            du[-1 if self.direction.reverse else 0] += carry.sum(-1)
        if self.delta_softplus:
            ddelta = ddelta * torch.where(self.delta_raw > 20, 1.0, torch.sigmoid(self.delta_raw))
        grads = {"A": dA}
        if self.direction.initial_state is not None:
            grads["initial_state"] = carry
        if self.D is not None:
            grads["D"] = (dy_full * self.u).sum((0, 1))
            du = du + self.D * dy_full
        if self.direction.delta_bias is not None:
            grads["delta_bias"] = ddelta.sum((0, 1))
        for name, grad in (("u", du), ("delta", ddelta), ("B", dB), ("C", dC)):
            constant = name in ("B", "C") and self._is_constant(name)
            grads[name] = grad[0, 0] if constant else grad.movedim(0, -1)
        return grads
