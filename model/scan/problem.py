"""What a scan computes: its tensors, its directions and the checks on them.

Letters: B batch, D channels, L tokens, N state size, G groups of D / G neighbouring channels that
share their B and C. Every tensor is in token order, never flipped.
"""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from model.errors import ModelError

InitialState = Literal["zero", "first_token"]


class ScanError(ModelError):
    """A scan was asked for with tensors, options or a backend that cannot work."""


class Layout(NamedTuple):
    """A tensor without its elements and without a place in memory."""

    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, tensor: Tensor | None) -> "Layout | None":
        """The layout of ``tensor``; None when absent."""
        return None if tensor is None else cls(tensor.shape, tensor.stride(), tensor.dtype)

    def without_memory(self) -> Tensor:
        """A tensor of this layout on the device "meta"."""
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device="meta")


Layouts = tuple[Layout | bool | None, ...]
"""The fields of a scan, each tensor as its layout."""


@dataclass(frozen=True)
class Direction:
    """One pass over the tokens: h_t = exp(delta_t A) h_{t-1} + delta_t u_t B_t, read out by C."""

    u: Tensor  # (B, D, L)
    delta: Tensor  # (B, D, L), before bias and softplus
    A: Tensor  # (D, N)
    B: Tensor  # (B, G, N, L), or (D, N) when it is the same at every token
    C: Tensor  # as B
    D: Tensor | None  # (D,), the skip connection
    delta_bias: Tensor | None  # (D,)
    initial_state: Tensor | None  # (B, D, N)
    reverse: bool  # scan from the last token to the first
    mask_current: bool  # leave the current token out of the read-out
    suffix: str  # of the arguments that are this direction's own


@dataclass(frozen=True, kw_only=True)
class Scan:
    """Arguments of one scan: one direction when ``A_b`` is None, both otherwise.

    A ``*_b`` tensor that is None is shared with the forward direction (``D`` then counts twice).
    B and C are (B, N, L), (B, G, N, L) or, when constant, (D, N). Only a scan in one direction may
    be given its initial state or asked for its last one.
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
    initial_state: Tensor | None = None
    delta_softplus: bool = False
    first_token: bool = False
    mask_current: bool = False
    reverse: bool = False
    return_last_state: bool = False

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """The tensors that are present, by argument name, in the order of the fields."""
        for name in TENSORS:
            value = getattr(self, name)
            if value is not None:
                yield name, value

    @functools.cached_property
    def layout(self) -> Layouts:
        """All that a plan for this scan may depend on."""
        tensors = (Layout.of(getattr(self, name)) for name in TENSORS)
        return (*tensors, *(getattr(self, name) for name in OPTIONS))

    @classmethod
    def without_memory(cls, layout: Layouts) -> "Scan":
        """A scan of that ``layout`` on the device "meta"."""
        values = (v.without_memory() if isinstance(v, Layout) else v for v in layout)
        arguments: dict[str, Any] = dict(zip(NAMES, values, strict=True))
        return cls(**arguments)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, D, L, N)."""
        return (*self.u.shape, self.A.shape[1])

    @property
    def groups(self) -> int:
        """G: the number of groups of channels that share B and C; 1 when all are constant."""
        return next((t.shape[1] for _, t in self._mixing() if t.dim() == 4), 1)

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

    def _mixing(self) -> Iterator[tuple[str, Tensor]]:
        return ((name, t) for name, t in self.tensors() if name in ("B", "C", "B_b", "C_b"))

    def _direction(self, suffix: str, reverse: bool, mask_current: bool) -> Direction:
        names = ("u", "delta", "A", "B", "C", "D", "delta_bias")
        tensors = {name: getattr(self, self.own(name, suffix)) for name in names}
        for name in ("B", "C"):
            if tensors[name].dim() == 3:
                tensors[name] = tensors[name].unsqueeze(1)
        return Direction(
            **tensors,
            initial_state=self.initial_state,
            reverse=reverse,
            mask_current=mask_current,
            suffix=suffix,
        )

    def validate(self) -> None:
        """Raise ScanError unless every tensor is floating point, on one device and shaped alike."""
        if self.u.dim() != 3 or 0 in self.u.shape:
            raise ScanError(f"scan: u is {_describe(self.u)}; it must be (batch, channels, tokens)")
        batch, channels, length = self.u.shape
        if self.A.dim() != 2 or self.A.shape[0] != channels or self.A.shape[1] == 0:
            raise ScanError(f"scan: A is {_describe(self.A)}; u asks for ({channels}, state size)")
        if self.A_b is not None and (self.initial_state is not None or self.return_last_state):
            raise ScanError("scan: only one direction takes an initial state or has a last state")
        size, groups = self.A.shape[1], self.groups
        if groups == 0 or channels % groups:
            raise ScanError(f"scan: {channels} channels do not divide into {groups} groups")
        mixing: list[tuple[int, ...]] = [(channels, size), (batch, groups, size, length)]
        mixing += [(batch, size, length)] if groups == 1 else []
        expected: dict[str, list[tuple[int, ...]]] = {
            "u": [(batch, channels, length)],
            "delta": [(batch, channels, length)],
            "z": [(batch, channels, length)],
            "A": [(channels, size)],
            "B": mixing,
            "C": mixing,
            "D": [(channels,)],
            "delta_bias": [(channels,)],
            "initial_state": [(batch, channels, size)],
        }
        for name, tensor in self.tensors():
            shapes = expected[name.removesuffix("_b")]
            if tuple(tensor.shape) not in shapes:
                wanted = " or ".join(map(str, reversed(shapes)))
                raise ScanError(f"scan: {name} is {_describe(tensor)}; u and A ask for {wanted}")
            if not tensor.is_floating_point():
                raise ScanError(f"scan: {name} is {_describe(tensor)}; it must be floating point")
            if tensor.device != self.u.device:
                raise ScanError(f"scan: {name} is on {tensor.device}, u is on {self.u.device}")


NAMES = tuple(field.name for field in fields(Scan))
TENSORS, OPTIONS = (
    NAMES[: NAMES.index("delta_softplus")],
    NAMES[NAMES.index("delta_softplus") :],
)
"""The fields of a scan, and which of them are tensors."""


class Forward(NamedTuple):
    """The result of a fused backend's forward; a tensor not asked for has shape (0,)."""

    out: Tensor  # (B, D, L) in the dtype of u, its memory (B, L, D)
    pre_gate: Tensor  # (B, D, L) sum before the gate, kept for backward when there is a gate
    states: Tensor  # kept for backward, of ``states_shape``
    last_state: Tensor  # (B, D, N) after the last scanned token


def placed(grads: dict[str, Tensor], into: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
    """``grads``, moved into the memory that ``into`` has for them unless they are there already."""
    for name, memory in (into or {}).items():
        grad = grads[name]
        if grad.data_ptr() != memory.data_ptr():
            memory.copy_(grad.squeeze(1) if grad.dim() > memory.dim() else grad)
        grads[name] = memory
    return grads


def token_major(batch: int, channels: int, length: int, like: Tensor, dtype: torch.dtype) -> Tensor:
    """An uninitialised (B, D, L) tensor whose memory is (B, L, D), as linear layers write it."""
    return like.new_empty((batch, length, channels), dtype=dtype).transpose(1, 2)


def _describe(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
