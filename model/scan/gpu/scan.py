"""Launches the Triton scan: one kernel per direction, the second adding to the first."""

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from model.scan.gpu.language import next_power_of_2, triton
from model.scan.gpu.scan_kernels import backward_kernel, forward_kernel
from model.scan.problem import Direction, Scan, token_major

CHUNK = 32  # tokens between kept states
# Channels of a program. Backward's decides how many partial sums of dB and dC there are.
_FORWARD_BLOCK, _BACKWARD_BLOCK = 4, 16


class _Kernels(NamedTuple):
    forward: Any
    backward: Any
    forward_options: dict[str, int]
    backward_options: dict[str, int]


@functools.cache
def _kernels() -> _Kernels:
    """The kernels, autotuned where there is a GPU to tune on."""
    if not torch.cuda.is_available():
        fixed = {"BLOCK": _FORWARD_BLOCK, "num_warps": 4}
        return _Kernels(forward_kernel, backward_kernel, fixed, {"num_warps": 8})
    shape = ["channels", "length", "size"]
    forward = [
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block, warps in ((2, 2), (4, 2), (4, 4), (8, 4), (8, 8), (16, 8))
    ]
    backward = [triton.Config({}, num_warps=warps) for warps in (4, 8, 16)]
    # The second direction adds to what the first wrote, so trial runs must put it back.
    return _Kernels(
        triton.autotune(forward, key=shape, restore_value=["total"])(forward_kernel),
        triton.autotune(backward, key=shape, restore_value=["du", "ddelta", "dB", "dC"])(
            backward_kernel
        ),
        {},
        {},
    )


def states_shape(passes: int, batch: int, channels: int, length: int, size: int) -> Sequence[int]:
    """Shape of the kept states: the state that each chunk starts from."""
    return passes, batch, (length + CHUNK - 1) // CHUNK, channels, size


def forward(scan: Scan, keep: bool) -> tuple[Tensor, Tensor, Tensor]:
    """See ``op.Kernels``."""
    batch, channels, length, size = scan.shape
    directions = scan.directions()
    out = token_major(batch, channels, length, scan.u, scan.u.dtype)
    total = token_major(batch, channels, length, scan.u, torch.float32)
    shape = states_shape(len(directions), batch, channels, length, size) if keep else (0,)
    states = scan.u.new_empty(shape, dtype=torch.float32)
    kernels = _kernels()

    def grid(chosen: dict[str, int]) -> tuple[int, int]:
        return triton.cdiv(channels, chosen["BLOCK"]), batch

    for index, direction in enumerate(directions):
        last = index + 1 == len(directions)
        kernels.forward[grid](
            *_pointers(scan, direction),
            total,
            out,
            states[index] if keep else states,
            *_strides(scan, direction),
            *(channels, length, size),
            **_flags(scan, direction),
            ADD=index > 0,
            LAST=last,
            KEEP_TOTAL=not last or (keep and scan.z is not None),
            KEEP_STATES=keep,
            **kernels.forward_options,
        )
    kept = total if keep and scan.z is not None else scan.u.new_empty(0, dtype=torch.float32)
    return out, kept, states


def backward(scan: Scan, dout: Tensor, pre_gate: Tensor, states: Tensor) -> dict[str, Tensor]:
    """See ``op.Kernels``."""
    batch, channels, length, size = scan.shape
    blocks, kernels = triton.cdiv(channels, _BACKWARD_BLOCK), _kernels()
    grads: dict[str, Tensor] = {}

    def new(*shape: int) -> Tensor:
        return scan.u.new_empty(shape, dtype=torch.float32)

    dz = token_major(batch, channels, length, scan.u, torch.float32) if scan.z is not None else dout
    for index, direction in enumerate(scan.directions()):
        owners = {name: scan.own(name, direction.suffix) for name in ("u", "delta", "B", "C")}
        adds = {f"ADD_D{name.upper()}": owner in grads for name, owner in owners.items()}
        for name, owner in owners.items():
            if owner not in grads:
                is_partial = name in ("B", "C")
                shape = (blocks, batch, length, size) if is_partial else (batch, length, channels)
                grads[owner] = new(*shape)
        sums = {"A": new(batch, channels, size), "D": new(batch, channels)}
        sums["delta_bias"] = new(batch, channels)
        kernels.backward[(blocks, batch)](
            *_pointers(scan, direction),
            *(pre_gate, dout, states[index]),
            *(grads[owners["u"]], grads[owners["delta"]], sums["A"]),
            *(grads[owners["B"]], grads[owners["C"]], sums["D"], sums["delta_bias"], dz),
            *_strides(scan, direction),
            *dout.stride(),
            *(channels, length, size),
            **_flags(scan, direction),
            **adds,
            WRITE_DZ=index == 0 and scan.z is not None,
            BLOCK=_BACKWARD_BLOCK,
            **kernels.backward_options,
        )
        for name, partial in sums.items():
            if getattr(direction, name) is not None:
                owner, grad = scan.own(name, direction.suffix), partial.sum(0)
                grads[owner] = grads[owner] + grad if owner in grads else grad
    for owner in grads:
        if owner.removesuffix("_b") in ("B", "C"):
            grads[owner] = grads[owner].sum(0).transpose(1, 2)
        elif owner.removesuffix("_b") in ("u", "delta"):
            grads[owner] = grads[owner].transpose(1, 2)
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
    tensors = (direction.u, direction.delta, direction.B, direction.C, z)
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
