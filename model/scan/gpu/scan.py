"""Launches the Triton scan: one kernel per direction, the second adding to the first."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.scan.gpu.language import next_power_of_2, triton
from model.scan.gpu.scan_kernels import backward_kernel, forward_kernel
from model.scan.problem import Direction, Forward, Scan, token_major

CHUNK = 16  # tokens between kept states
# Channels x states of a program: what its registers hold of CHUNK tokens, see `_block`. Backward's
# decides how many partial sums of dB and dC there are.
_FORWARD_TILE, _BACKWARD_TILE = 512, 256


class _Kernels(NamedTuple):
    forward: Any
    backward: Any
    forward_options: dict[str, int]
    backward_options: dict[str, int]


def _kernels(size: int) -> _Kernels:
    """The kernels and how to launch them.

    Autotuned on a GPU, unless torch is to be deterministic: timing then chooses in which order
    sums are made, and two processes may choose differently.
    """
    may_tune = torch.cuda.is_available() and not torch.are_deterministic_algorithms_enabled()
    if may_tune and isinstance(forward_kernel, triton.JITFunction):  # not under the interpreter
        return _tuned_kernels()
    forward_options = {"BLOCK": _block(size, _FORWARD_TILE), "num_warps": 4}
    return _Kernels(forward_kernel, backward_kernel, forward_options, {"num_warps": 4})


@functools.cache
def _tuned_kernels() -> _Kernels:
    shape = ["channels", "length", "size"]
    forward = [
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block, warps in ((8, 1), (8, 2), (16, 2), (16, 4), (32, 4), (32, 8))
    ]
    backward = [triton.Config({}, num_warps=warps) for warps in (2, 4, 8)]
    return _Kernels(
        triton.autotune(forward, key=shape)(forward_kernel),
        triton.autotune(backward, key=shape)(backward_kernel),
        {},
        {},
    )


def _block(size: int, tile: int) -> int:
    """Channels of a program that holds `tile` channels x states."""
    return max(1, tile // int(next_power_of_2(size)))


def states_shape(scan: Scan) -> Sequence[int]:
    """Shape of the kept states: the state that each chunk starts from."""
    batch, channels, length, size = scan.shape
    return len(scan.directions()), batch, (length + CHUNK - 1) // CHUNK, channels, size


def forward(scan: Scan, keep: bool) -> Forward:
    """See ``op.Kernels``; takes a plain scan only."""
    batch, channels, length, size = scan.shape
    directions = scan.directions()
    shape = states_shape(scan) if keep else (0,)
    states = scan.u.new_empty(shape, dtype=torch.float32)
    out = token_major(batch, channels, length, scan.u, scan.u.dtype)
    total: Tensor | None = None
    kernels = _kernels(size)

    def grid(chosen: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(channels, chosen["BLOCK"]), batch

    for index, direction in enumerate(directions):
        last = index + 1 == len(directions)
        before, keep_total = total, not last or (keep and scan.z is not None)
        if keep_total:
            total = token_major(batch, channels, length, scan.u, torch.float32)
        kernels.forward[grid](
            *_pointers(scan, direction),
            *(out if before is None else before, total if keep_total else out),
            out,
            states[index] if keep else states,
            *_strides(scan, direction),
            *(channels, length, size),
            **_flags(scan, direction),
            ADD=before is not None,
            LAST=last,
            KEEP_TOTAL=keep_total,
            KEEP_STATES=keep,
            **kernels.forward_options,
        )
    absent = scan.u.new_empty(0, dtype=torch.float32)
    pre_gate = total if keep and scan.z is not None else None
    return Forward(out, absent if pre_gate is None else pre_gate, states, absent.clone())


def backward(
    scan: Scan, dout: Tensor, dlast_state: Tensor | None, pre_gate: Tensor, states: Tensor
) -> dict[str, Tensor]:
    """See ``op.Kernels``."""
    batch, channels, length, size = scan.shape
    block, kernels, directions = _block(size, _BACKWARD_TILE), _kernels(size), scan.directions()
    blocks = triton.cdiv(channels, block)
    grads: dict[str, Tensor] = {}

    def new(*shape: int) -> Tensor:
        return scan.u.new_empty(shape, dtype=torch.float32)

    def activation(dtype: torch.dtype) -> Tensor:
        return token_major(batch, channels, length, scan.u, dtype)

    dz = dout if scan.z is None else activation(scan.z.dtype)
    for index, direction in enumerate(directions):
        owners = {name: scan.own(name, direction.suffix) for name in ("u", "delta")}
        # A shared u or delta has a float32 sum of both directions on the way to its gradient.
        before = {name: grads.get(owner) for name, owner in owners.items()}
        for name, owner in owners.items():
            goes_on = any(owner == scan.own(name, d.suffix) for d in directions[index + 1 :])
            dtype = torch.float32 if goes_on else getattr(direction, name).dtype
            grads[owner] = activation(dtype)
        partials = {"A": new(batch, channels, size)}
        partials |= {name: new(batch, channels) for name in ("D", "delta_bias")}
        partials |= {name: new(blocks, batch, length, size) for name in ("B", "C")}
        kernels.backward[(blocks, batch)](
            *_pointers(scan, direction),
            *(pre_gate, dout, states[index]),
            *(dout if tensor is None else tensor for tensor in before.values()),
            *(grads[owner] for owner in owners.values()),
            *(partials[name] for name in ("A", "B", "C", "D", "delta_bias")),
            dz,
            *_strides(scan, direction),
            *dout.stride(),
            *(channels, length, size),
            **_flags(scan, direction),
            ADD_DU=before["u"] is not None,
            ADD_DDELTA=before["delta"] is not None,
            WRITE_DZ=index == 0 and scan.z is not None,
            BLOCK=block,
            **kernels.backward_options,
        )
        for name, partial in partials.items():
            if getattr(direction, name) is not None:
                owner, grad = scan.own(name, direction.suffix), partial.sum(0)
                grad = grad.transpose(1, 2)[:, None] if name in ("B", "C") else grad
                grads[owner] = grads[owner] + grad if owner in grads else grad
    return grads | ({"z": dz} if scan.z is not None else {})


def _pointers(scan: Scan, direction: Direction) -> tuple[Tensor, ...]:
    """u, delta, A, B, C, D, bias, z; an absent tensor is replaced by one that is not read."""
    dense = [
        None if tensor is None else tensor.to(torch.float32).contiguous()
        for tensor in (direction.A, direction.D, direction.delta_bias)
    ]
    A, D, bias = (direction.u if tensor is None else tensor for tensor in dense)
    z = direction.u if scan.z is None else scan.z
    return direction.u, direction.delta, A, direction.B, direction.C, D, bias, z


def _strides(scan: Scan, direction: Direction) -> tuple[int, ...]:
    z = direction.u if scan.z is None else scan.z
    tensors = (direction.u, direction.delta, direction.B[:, 0], direction.C[:, 0], z)
    return tuple(stride for tensor in tensors for stride in tensor.stride())


def _flags(scan: Scan, direction: Direction) -> dict[str, bool | int]:
    return {
        "HAS_D": direction.D is not None,
        "HAS_BIAS": direction.delta_bias is not None,
        "HAS_Z": scan.z is not None,
        "SOFTPLUS": scan.delta_softplus,
        "FIRST_TOKEN": scan.first_token,
        "MASKED": direction.mask_current,
        "REVERSE": direction.reverse,
        "CHUNK": CHUNK,
        "N": next_power_of_2(scan.A.shape[1]),
    }
