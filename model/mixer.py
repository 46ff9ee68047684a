"""The bidirectional Mamba mixer: projections, causal convolution, selective scan, gate.

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


class _ScanInputs(NamedTuple):
    """What one direction feeds the scan; delta is before its bias and softplus."""

    u: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L)
    B: Tensor  # (B, N, L)
    C: Tensor  # (B, N, L)


class Mixer(nn.Module):
    """Mixes tokens in both directions.

    Layout "shared" has one set of weights for both directions except A; "separate" gives the
    backward direction its own convolution, projections and skip (names ending in `_b`).
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        inner, state = config.inner_dim, config.d_state
        self.in_proj = nn.Linear(config.embed_dim, 2 * inner, bias=False)
        self.A_log = nn.Parameter(torch.empty(inner, state))
        self.D = nn.Parameter(torch.empty(inner))
        self.conv1d = _depthwise_conv(config)
        self.x_proj = nn.Linear(inner, config.dt_rank + 2 * state, bias=False)
        self.dt_proj = nn.Linear(config.dt_rank, inner)
        self.A_b_log = nn.Parameter(torch.empty(inner, state))
        if config.layout == "separate":
            self.D_b = nn.Parameter(torch.empty(inner))
            self.conv1d_b = _depthwise_conv(config)
            self.x_proj_b = nn.Linear(inner, config.dt_rank + 2 * state, bias=False)
            self.dt_proj_b = nn.Linear(config.dt_rank, inner)
        self.out_proj = nn.Linear(inner, config.embed_dim, bias=False)

    def forward(self, hidden: Tensor) -> Tensor:
        """hidden (B, L, d) -> (B, L, d)."""
        xz = self.in_proj(hidden)
        backends = fused_backends(xz, self.config)
        mixed = self.compose(xz) if backends is None else self._inner(xz, *backends)
        projected: Tensor = self.out_proj(mixed)
        return projected

    def compose(self, xz: Tensor) -> Tensor:
        """xz (B, L, 2 D) -> (B, L, D), operator by operator: the reference for ``inner``."""
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
            *self._decays(),
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
            self._decays()[0],
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
        return inner(xz, *self._decays(), ways, options)

    def _decays(self) -> tuple[Tensor, Tensor]:
        """A and A_b (D, N)."""
        return -torch.exp(self.A_log.float()), -torch.exp(self.A_b_log.float())

    def _scan_inputs(
        self,
        x: Tensor,
        conv1d: nn.Conv1d,
        x_proj: nn.Linear,
        dt_proj: nn.Linear,
        reverse: bool = False,
    ) -> _ScanInputs:
        """x (B, D, L) -> what the scan of one direction reads; `reverse` looks at later tokens."""
        convolved = causal_conv1d_silu(x, conv1d.weight, conv1d.bias, reverse=reverse)
        low_rank, B, C = x_proj(convolved.transpose(1, 2)).split(
            [self.config.dt_rank, self.config.d_state, self.config.d_state], dim=-1
        )
        # The bias joins delta in fp32 inside the scan: the step size is sensitive to its rounding.
        delta = F.linear(low_rank, dt_proj.weight)
        u = convolved if self.config.value == "conv" else x
        return _ScanInputs(u, delta.transpose(1, 2), B.transpose(1, 2), C.transpose(1, 2))


def _way(conv1d: nn.Conv1d, x_proj: nn.Linear, dt_proj: nn.Linear, skip: Tensor) -> Way:
    assert conv1d.bias is not None
    return Way(conv1d.weight, conv1d.bias, x_proj.weight, dt_proj.weight, dt_proj.bias, skip)


def _depthwise_conv(config: ModelConfig) -> nn.Conv1d:
    return nn.Conv1d(
        config.inner_dim, config.inner_dim, config.d_conv, groups=config.inner_dim, bias=True
    )
