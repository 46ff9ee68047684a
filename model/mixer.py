"""The Mamba mixer, in both directions or one: projections, causal convolution, scan, gate.

Legend: B batch, L tokens, d embed_dim, D inner_dim, N d_state, R dt_rank.
Activations keep (B, L, channels) in memory; the scan sees them as (B, channels, L) views, and
both directions read tokens in their own order: nothing is copied or flipped.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model.config import ModelConfig
from model.inner import Options, Way, fused_backends, inner
from model.scan import bidirectional_scan, causal_conv1d_silu, selective_scan
from model.step_linear import linear, linear_by_step


class MixerState(NamedTuple):
    """What a forward-only mixer carries from one piece of a sequence to the next."""

    inputs: Tensor  # (B, K - 1, D), what the convolution has read last
    scan: Tensor  # (B, D, N) in float32


class _ScanInputs(NamedTuple):
    """What one direction feeds the scan; delta is before its bias and softplus."""

    u: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L)
    B: Tensor  # (B, N, L)
    C: Tensor  # (B, N, L)


class Mixer(nn.Module):
    """Mixes tokens in both directions, or, with direction "forward", with earlier tokens only.

    Layout "shared" has one set of weights for both directions except A; "separate" gives the
    backward direction its own convolution, projections and skip (names ending in `_b`).
    """

    A_b_log: nn.Parameter | None

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        inner, state, rows = config.inner_dim, config.d_state, config.tokens_per_step
        self.in_proj = linear(config.embed_dim, 2 * inner, rows=rows, bias=False)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.conv1d = _depthwise_conv(config)
        self.x_proj = linear(inner, config.dt_rank + 2 * state, rows=rows, bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, inner)
        is_forward = config.direction == "forward"
        self.A_b_log = None if is_forward else nn.Parameter(torch.empty(inner, state))
        if config.layout == "separate":
            self.D_b = nn.Parameter(torch.empty(inner))
            self.conv1d_b = _depthwise_conv(config)
            self.x_proj_b = nn.Linear(inner, config.dt_rank + 2 * state, bias=False)
            self.dt_proj_b = nn.Linear(config.dt_rank, inner)
        self.out_proj = linear(inner, config.embed_dim, rows=rows, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, L, d) -> (B, L, d)."""
        xz = self.in_proj(hidden)
        backends = fused_backends(xz, self.config)
        mixed = self.compose(xz) if backends is None else self._inner(xz, *backends)
        projected: Tensor = self.out_proj(mixed)
        return projected

    def advance(self, hidden: Tensor, state: MixerState | None) -> tuple[Tensor, MixerState]:
        """Mix the next tokens of a sequence, with direction "forward".

        hidden (B, L, d), the state behind the tokens before them (None at the start) ->
        (B, L, d), the state behind these.
        """
        mixed, after = self._mix_forward(self.in_proj(hidden), state)
        # A view would keep all tokens alive.
        return self.out_proj(mixed), MixerState(after.inputs.clone(), after.scan)

    def compose(self, xz: Tensor) -> Tensor:
        """xz (B, L, 2 D) -> (B, L, D), operator by operator: the reference for ``inner``."""
        if self.config.direction == "forward":
            return self._mix_forward(xz, None)[0]
        assert self.A_b_log is not None
        # xz is halved before transposing, so that gradients join in the order that in_proj needs.
        x, z = (half.transpose(1, 2) for half in xz.chunk(2, dim=-1))
        forward = self._scan_inputs(x, self.conv1d, self.x_proj, self.dt_proj)
        own: dict[str, Tensor] = {}
        if self.config.layout == "separate":
            backward = self._scan_inputs(
                x, self.conv1d_b, self.x_proj_b, self.dt_proj_b, reverse=True
            )
            own = {f"{name}_b": tensor for name, tensor in backward._asdict().items()}
            own |= {"D_b": self.D_b, "delta_bias_b": self.dt_proj_b.bias}
        y = bidirectional_scan(
            forward.u,
            forward.delta,
            _decay(self.A_log),
            _decay(self.A_b_log),
            forward.B,
            forward.C,
            self.D,
            z,
            self.dt_proj.bias,
            **own,
            delta_softplus=True,
            initial_state=self.config.initial_state,
            mask_backward=self.config.mask_backward,
            backend=self.config.scan_backend,
        )
        return y.transpose(1, 2)

    @torch.no_grad()
    def magnitudes(self, hidden: Tensor) -> Tensor:
        """hidden (B, L, d) -> (4,) float32: root mean squares of what the forward direction scans.

        They are those of the step size Delta, of B, of C and of the state after the last token.
        """
        x = self.in_proj(hidden).chunk(2, dim=-1)[0].transpose(1, 2)
        given = self._scan_inputs(x, self.conv1d, self.x_proj, self.dt_proj)
        _, state = selective_scan(
            given.u,
            given.delta,
            _decay(self.A_log),
            given.B,
            given.C,
            delta_bias=self.dt_proj.bias,
            delta_softplus=True,
            initial_state=self.config.initial_state,
            backend=self.config.scan_backend,
            return_last_state=True,
        )
        step = F.softplus(given.delta.float() + self.dt_proj.bias.float()[:, None])
        return torch.stack(
            [seen.float().square().mean().sqrt() for seen in (step, given.B, given.C, state)]
        )

    def _mix_forward(self, xz: Tensor, state: MixerState | None) -> tuple[Tensor, MixerState]:
        """xz (B, L, 2 D) of the next tokens -> (B, L, D), and the state behind them."""
        x, z = xz.chunk(2, dim=-1)
        past = self.config.d_conv - 1
        before = x.new_zeros(x.shape[0], past, x.shape[2]) if state is None else state.inputs
        x = torch.cat([before, x], dim=1)
        scanned = self._scan_inputs(
            x.transpose(1, 2), self.conv1d, self.x_proj, self.dt_proj, past=past
        )
        y, last = selective_scan(
            scanned.u,
            scanned.delta,
            _decay(self.A_log),
            scanned.B,
            scanned.C,
            self.D,
            z.transpose(1, 2),
            self.dt_proj.bias,
            delta_softplus=True,
            initial_state=self.config.initial_state if state is None else state.scan,
            backend=self.config.scan_backend,
            return_last_state=True,
        )
        return y.transpose(1, 2), MixerState(x[:, x.shape[1] - past :], last)

    def _inner(self, xz: Tensor, scan_backend: str, conv_backend: str) -> Tensor:
        ways = [_way(self.conv1d, self.x_proj, self.dt_proj, self.D)]
        if self.config.layout == "separate":
            ways.append(_way(self.conv1d_b, self.x_proj_b, self.dt_proj_b, self.D_b))
        options = Options(
            scans_input=self.config.value == "raw",
            first_token=self.config.initial_state == "first_token",
            mask_backward=self.config.mask_backward,
            scan_backend=scan_backend,
            conv_backend=conv_backend,
        )
        A_b = None if self.A_b_log is None else _decay(self.A_b_log)
        return inner(xz, _decay(self.A_log), A_b, ways, options)

    def _scan_inputs(
        self,
        x: Tensor,
        conv1d: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        reverse: bool = False,
        past: int = 0,
    ) -> _ScanInputs:
        """x (B, D, L) -> what the scan of one direction reads; `reverse` looks at later tokens.

        The first `past` tokens are read by the convolution only and not scanned.
        """
        convolved = causal_conv1d_silu(x, conv1d.weight, conv1d.bias, reverse=reverse)
        convolved, x = convolved[:, :, past:], x[:, :, past:]
        low_rank, B, C = x_proj(convolved.transpose(1, 2)).split(
            [self.config.dt_rank, self.config.d_state, self.config.d_state], dim=-1
        )
        # The bias joins delta in fp32 inside the scan: the step size is sensitive to its rounding.
        rows = self.config.tokens_per_step
        delta = (
            F.linear(low_rank, dt_proj.weight)
            if rows is None
            else linear_by_step(low_rank, dt_proj.weight, None, rows)
        )
        u = convolved if self.config.value == "conv" else x
        return _ScanInputs(u, delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2))


def _decay(log: Tensor) -> Tensor:
    """A (D, N) of its logarithm."""
    return -torch.exp(log.float())


def _way(conv1d: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, skip: Tensor) -> Way:
    assert conv1d.bias is not None
    return Way(conv1d.weight, conv1d.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, skip)


def _depthwise_conv(config: ModelConfig) -> nn.Conv1d:
    return nn.Conv1d(
        config.inner_dim, config.inner_dim, config.d_conv, groups=config.inner_dim, bias=True
    )
