"""What a scan computes: its tensors, its directions and the checks on them.

Letters: B batch, D channels, L tokens, N state size. Every tensor is in token order, never flipped.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from model.errors import ModelError

InitialState = Literal["zero", "first_token"]


class ScanError(ModelError):
    """A scan was asked for with tensors, options or a backend that cannot work."""


@dataclass(frozen=True)
class Direction:
    """One pass over the tokens: h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t, read out by C."""

    u: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L), before bias and softplus
    A: Tensor  # (D, N)
    B: Tensor  # (B, N, L)
    C: Tensor  # (B, N, L)
    D: Tensor | None  # (D,), the skip connection
    delta_bias: Tensor | None  # (D,)
    reverse: bool  # scan from the last token to the first
    mask_current: bool  # leave the current token out of the read-out
    suffix: str  # of the arguments that are this direction's own


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Arguments of one scan: one direction when ``A_b`` is None, both otherwise.

    A ``*_b`` tensor that is None is shared with the forward direction (``D`` then counts twice).
    """

    u: Tensor
    delta: Tensor
    A: Tensor
    B: Tensor
    C: Tensor
    D: Tensor | None = None
    z: Tensor | None = None
    delta_bias: Tensor | None = None
    A_b: Tensor | None = None
    u_b: Tensor | None = None
    delta_b: Tensor | None = None
    B_b: Tensor | None = None
    C_b: Tensor | None = None
    D_b: Tensor | None = None
    delta_bias_b: Tensor | None = None
    delta_softplus: bool = False
    first_token: bool = False
    mask_current: bool = False
    reverse: bool = False

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are present, by argument name, in the order of the fields."""
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, Tensor):
                yield field.name, value

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, D, L, N)."""
        return (*self.u.shape, self.A.shape[1])

    @property
    def state_dtype(self) -> torch.dtype:
        """float64 when any input is, else float32: the state is never kept in half precision."""
        is_double = any(tensor.dtype == torch.float64 for _, tensor in self.tensors())
        return torch.float64 if is_double else torch.float32

    def own(self, name: str, suffix: str) -> str:
        """The argument that holds ``name`` for the direction of ``suffix``."""
        owned = name + suffix
        return owned if suffix and getattr(self, owned) is not None else name

    def directions(self) -> tuple[Direction, ...]:
        """The passes in the order in which they are read out."""
        if self.A_b is None:
            return (self._direction("", self.reverse, self.mask_current),)
        return (self._direction("", False, False), self._direction("_b", True, self.mask_current))

    def _direction(self, suffix: str, reverse: bool, mask_current: bool) -> Direction:
        names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
        tensors = {name: getattr(self, self.own(name, suffix)) for name in names}
        return Direction(**tensors, reverse=reverse, mask_current=mask_current, suffix=suffix)

    def validate(self) -> None:
        """Raise ScanError unless every tensor is floating point, on one device and shaped alike."""
        if self.u.dim() != 3 or 0 in self.u.shape:
            raise ScanError(f"scan: u is {_describe(self.u)}; it must be (batch, channels, tokens)")
        batch, channels, length = self.u.shape
        if self.A.dim() != 2 or self.A.shape[0] != channels or self.A.shape[1] == 0:
            raise ScanError(f"scan: A is {_describe(self.A)}; u asks for ({channels}, state size)")
        size = self.A.shape[1]
        expected = {
            "u": (batch, channels, length),
            "delta": (batch, channels, length),
            "z": (batch, channels, length),
            "A": (channels, size),
            "B": (batch, size, length),
            "C": (batch, size, length),
            "D": (channels,),
            "delta_bias": (channels,),
        }
        for name, tensor in self.tensors():
            shape = expected[name.removesuffix("_b")]
            if tuple(tensor.shape) != shape:
                raise ScanError(f"scan: {name} is {_describe(tensor)}; u and A ask for {shape}")
            if not tensor.is_floating_point():
                raise ScanError(f"scan: {name} is {_describe(tensor)}; it must be floating point")
            if tensor.device != self.u.device:
                raise ScanError(f"scan: {name} is on {tensor.device}, u is on {self.u.device}")


def token_major(batch: int, channels: int, length: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, D, L) tensor whose memory is (B, L, D), as linear layers write it."""
    return like.new_empty((batch, length, channels), dtype=dtype).transpose(1, 2)


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
