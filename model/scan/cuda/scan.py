"""Launches the CUDA C++ scan (scan.cu). The variant is a pure function of shapes and device."""

import ctypes
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.scan.cuda import launch
from model.scan.cuda.launch import Int, Long, Pointer, Strided
from model.scan.problem import Direction, Forward, Scan, ScanError, token_major

MAX_STATES = 64
_CHUNK = 16  # tokens between kept states
_REDUCE_THREADS = 128
_MAX_JOBS = 10
_MIN_SEGMENT_CHUNKS = 8
# Blocks of 2 * warps warps that share a multiprocessor, by registers and shared memory.
_BACKWARD_BLOCKS = {1: 9, 2: 4, 3: 3, 4: 2}
_ACTIVATIONS = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "f16"}


class _Rows(ctypes.Structure):
    _fields_ = [
        ("data", Pointer),
        *((name, Long) for name in ("batch", "group", "state", "token")),
    ]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Rows":
        """(B, groups, N, L)."""
        return cls(tensor.data_ptr(), *tensor.stride())


class _Direction(ctypes.Structure):
    _fields_ = [
        *((name, Strided) for name in ("u", "delta")),
        *((name, _Rows) for name in ("B", "C")),
        *((name, Pointer) for name in ("A", "D", "bias")),
        *((name, Strided) for name in ("du", "ddelta")),
        *((name, Int) for name in ("reverse", "masked")),
    ]


class _Scan(ctypes.Structure):
    _fields_ = [
        ("direction", _Direction * 2),
        *((name, Strided) for name in ("z", "dout", "out", "dz")),
        *((name, Pointer) for name in ("y", "du", "ddelta", "kept", "last", "ends", "steps")),
        *((name, Pointer) for name in ("dBC", "dA", "dD")),
        *((name, Int) for name in ("batch", "channels", "length", "states", "groups")),
        *((name, Int) for name in ("directions", "segments", "segment_chunks")),
        *((name, Int) for name in ("softplus", "first_token", "keep_total")),
        *((name, Int) for name in ("shared_u", "shared_delta")),
    ]


class _Axis(ctypes.Structure):
    _fields_ = [(name, Long) for name in ("size", "source", "target")]


class _Job(ctypes.Structure):
    _fields_ = [
        *((name, Pointer) for name in ("source", "target")),
        ("axes", _Axis * 4),
        *((name, Long) for name in ("outer", "outer_stride", "inner", "inner_stride")),
        *((name, Int) for name in ("half", "first_block")),
    ]


class _Reduction(ctypes.Structure):
    _fields_ = [("jobs", _Job * _MAX_JOBS), ("count", Int)]


def padded(size: int) -> int:
    """The state size that the kernels are compiled for: a power of two, at least 8."""
    return max(8, 1 << (size - 1).bit_length())


def takes(scan: Scan) -> bool:
    """Whether the kernels can run ``scan``.

    They know neither constant B and C, nor a state that is given or that gradients come back to,
    nor a state size that does not fit into a lane's registers.
    """
    mixing = [t for d in scan.directions() for t in (d.B, d.C)]
    has_gradient = any(tensor.requires_grad for _, tensor in scan.tensors())
    state_gradient = scan.return_last_state and has_gradient and torch.is_grad_enabled()
    return (
        all(tensor.dim() == 4 for tensor in mixing)
        and scan.initial_state is None
        and not state_gradient
        and scan.shape[3] <= MAX_STATES
    )


def states_shape(scan: Scan) -> Sequence[int]:
    """Shape of the kept states: the state before each chunk, in fours."""
    batch, channels, length, size = scan.shape
    return batch, len(scan.directions()), _chunks(length), padded(size) // 4, channels, 4


def _chunks(length: int) -> int:
    return (length + _CHUNK - 1) // _CHUNK


class Plan(NamedTuple):
    """How a scan is cut: a pure function of its shape and the device's multiprocessors."""

    forward_segments: int
    backward_segments: int
    backward_warps: int
    """Per direction of a block."""

    @classmethod
    def of(
        cls,
        passes: int,
        batch: int,
        channels: int,
        length: int,
        size: int,
        groups: int,
        multiprocessors: int,
    ) -> "Plan":
        """Segments multiply the warps where batch and channels give few.

        They cost a pass over the tokens that finds each segment's start: 0.8 of the work of the
        forward scan, 0.3 of backward's, so that forward is split later than backward. A block's
        warps are chosen for the fewest rounds of blocks; each adds sums for B and C to the fewer.
        """
        per_group = channels // groups
        chunks = _chunks(length)
        forward_warps = passes * batch * groups * _ceil(per_group * padded(size), 256)

        def segments(enough: int) -> int:
            if forward_warps >= enough * multiprocessors:
                return 1
            wanted = _ceil(16 * multiprocessors, forward_warps)
            return max(1, min(wanted, chunks // _MIN_SEGMENT_CHUNKS, 64))

        backward = segments(10)

        def cost(warps: int) -> float:
            tiles = groups * _ceil(per_group * padded(size), 256 * warps)
            blocks = tiles * batch * backward
            return _ceil(blocks, multiprocessors) * warps * (1 + 0.2 / warps)

        return cls(segments(6), backward, min((4, 3, 2, 1), key=cost))


def _ceil(a: int, b: int) -> int:
    return (a + b - 1) // b


def macros(dtype: torch.dtype, size: int, backward_warps: int) -> dict[str, str | int]:
    """What the sources are compiled with."""
    return {
        "ACTIVATION": _ACTIVATIONS[dtype],
        "STATES": padded(size),
        "BACKWARD_WARPS": backward_warps,
        "BACKWARD_BLOCKS": _BACKWARD_BLOCKS[backward_warps],
    }


def forward(scan: Scan, keep: bool) -> Forward:
    """See ``op.Kernels``."""
    call = _Call(scan)
    out = call.activation()
    call.job.out = Strided.of(out)
    empty, no_states, no_last = (call.floats(0) for _ in range(3))
    keep_total = keep and scan.z is not None
    y = call.sequence() if keep_total or call.job.directions == 2 else empty
    states = call.floats(*states_shape(scan)) if keep else no_states
    last = no_last
    if scan.return_last_state:
        last = call.floats(call.batch, call.channels, call.size)
        call.job.last = last.data_ptr()
    call.job.y, call.job.keep_total = y.data_ptr(), keep_total
    call.job.kept = states.data_ptr() if keep else None
    call.cut(call.plan.forward_segments)
    if call.job.segments > 1:
        call.walk("scan_ends")
    call.walk("scan_forward")
    return Forward(out.to(scan.u.dtype), y if keep_total else empty, states, last)


def backward(
    scan: Scan, dout: Tensor, dlast_state: Tensor | None, pre_gate: Tensor, states: Tensor
) -> dict[str, Tensor]:
    """See ``op.Kernels``. No atomics: partial sums are added in a fixed order."""
    call = _Call(scan)
    job, grads = call.job, dict[str, Tensor]()
    job.dout, job.kept = call.strided(dout), states.data_ptr()
    if scan.z is not None:
        grads["z"] = call.activation()
        job.y, job.dz = pre_gate.data_ptr(), Strided.of(grads["z"])
    directions = scan.directions()
    for direction, to in zip(directions, job.direction, strict=False):
        for name in ("u", "delta"):
            owner = scan.own(name, direction.suffix)
            if owner not in grads:
                grads[owner] = call.activation()
            setattr(to, f"d{name}", Strided.of(grads[owner]))
    both = len(directions) == 2
    job.shared_u, job.shared_delta = both and "u_b" not in grads, both and "delta_b" not in grads
    # The partial sums of the direction that comes first; see scan.cuh.
    partial = {name: call.sequence() for name in ("du", "ddelta") if getattr(job, _SHARED[name])}
    for name, tensor in partial.items():
        setattr(job, name, tensor.data_ptr())

    call.cut(call.plan.backward_segments)
    rows, padded_size = (call.batch, job.directions, job.segments), padded(call.size)
    tiles = call.tiles(256 * call.plan.backward_warps)
    dBC = call.floats(call.batch, job.directions, tiles, call.length, 2 * padded_size)
    dA = call.floats(*rows, call.channels, padded_size)
    dD = call.floats(*rows, 2, call.channels)
    job.dBC, job.dA, job.dD = dBC.data_ptr(), dA.data_ptr(), dD.data_ptr()
    if job.segments > 1:
        call.walk("scan_adjoint_ends")
    warps = job.directions * call.plan.backward_warps
    call.launch("scan_backward", tiles, 32 * warps, call.backward_shared())
    return grads | _Reducer(call, scan).run(dBC, dA, dD)


_SHARED = {"du": "shared_u", "ddelta": "shared_delta"}


class _Call:
    """The parameters of a launch, and the tensors that they point to."""

    def __init__(self, scan: Scan) -> None:
        self.batch, self.channels, self.length, self.size = scan.shape
        directions = scan.directions()
        self._like = scan.u
        self.dtype = _common_dtype(scan)
        self._alive: list[Tensor] = []
        self.job = job = _Scan()
        job.batch, job.channels, job.length, job.states = scan.shape
        job.groups = scan.groups
        job.directions = len(directions)
        job.softplus, job.first_token = scan.delta_softplus, scan.first_token
        for direction, to in zip(directions, job.direction, strict=False):
            self._fill(direction, to)
        if scan.z is not None:
            job.z = self.strided(scan.z)
        self.plan = Plan.of(
            len(directions), *scan.shape, job.groups, launch.multiprocessors(scan.u.device)
        )
        self.kernels = launch.load(
            "scan.cu", macros(self.dtype, self.size, self.plan.backward_warps), scan.u.device
        )

    def _fill(self, direction: Direction, to: _Direction) -> None:
        to.u, to.delta = self.strided(direction.u), self.strided(direction.delta)
        to.B, to.C = (_Rows.of(self._kept(tensor)) for tensor in (direction.B, direction.C))
        to.A, to.D = self._dense(direction.A), self._dense(direction.D)
        to.bias = self._dense(direction.delta_bias)
        to.reverse, to.masked = direction.reverse, direction.mask_current

    def _kept(self, tensor: Tensor) -> Tensor:
        self._alive.append(tensor.to(self.dtype))
        return self._alive[-1]

    def strided(self, tensor: Tensor) -> Strided:
        """An activation as the kernels take it, copied only when its type is another."""
        return Strided.of(self._kept(tensor))

    def _dense(self, tensor: Tensor | None) -> int | None:
        if tensor is None:
            return None
        self._alive.append(tensor.to(torch.float32).contiguous())
        return self._alive[-1].data_ptr()

    def floats(self, *shape: int) -> Tensor:
        return self._like.new_empty(shape, dtype=torch.float32)

    def sequence(self) -> Tensor:
        """A float32 (B, D, L), its memory laid out (B, L, D)."""
        return token_major(self.batch, self.channels, self.length, self._like, torch.float32)

    def activation(self) -> Tensor:
        """The same in the type of the activations."""
        return token_major(self.batch, self.channels, self.length, self._like, self.dtype)

    def cut(self, segments: int) -> None:
        """Divide the tokens into about ``segments`` segments of whole chunks."""
        chunks = _chunks(self.length)
        self.job.segment_chunks = _ceil(chunks, segments)
        self.job.segments = segments = _ceil(chunks, self.job.segment_chunks)
        if segments > 1:
            rows = (self.batch, self.job.directions, segments)
            ends = self.floats(*rows, padded(self.size) // 4, self.channels, 4)
            steps = self.floats(*rows, self.channels)
            self._alive += [ends, steps]
            self.job.ends, self.job.steps = ends.data_ptr(), steps.data_ptr()

    def tiles(self, states: int) -> int:
        """Tiles of ``states`` channels x states in all groups; see ``part_of_block``."""
        per_group = self.channels // self.job.groups
        return int(self.job.groups) * _ceil(per_group * padded(self.size), states)

    def walk(self, name: str) -> None:
        threads, shared = 32 * self.job.directions, 4 * _CHUNK * 2 * padded(self.size)
        self.launch(name, self.tiles(256), threads, shared * self.job.directions)

    def backward_shared(self) -> int:
        """Bytes of shared memory of a block of the backward kernel; see scan_backward.cuh."""
        size, warps = padded(self.size), self.plan.backward_warps
        channels, slots = 256 // size, 7 if size <= 32 else 8
        of_warp = 4 * _CHUNK * channels + slots * 256 + channels
        return int(self.job.directions) * 4 * (_CHUNK * 2 * size + 24 + warps * of_warp)

    def launch(self, name: str, tiles: int, threads: int, shared: int) -> None:
        blocks = tiles * self.batch * self.job.segments
        if blocks >= 2**31:
            raise ScanError(
                f"scan: batch {self.batch} x {self.channels} channels make {blocks} blocks, more "
                "than a GPU can be given at once; split the batch"
            )
        self.kernels.launch(name, blocks, threads, shared, self.job)


def _common_dtype(scan: Scan) -> torch.dtype:
    dtypes = {tensor.dtype for _, tensor in scan.tensors() if tensor.dim() >= 3}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


class _Reducer:
    """Adds up the partial sums of a backward pass in one launch."""

    def __init__(self, call: _Call, scan: Scan) -> None:
        self._call, self._scan = call, scan
        self._reduction = _Reduction()
        self._blocks = 0

    def run(self, dBC: Tensor, dA: Tensor, dD: Tensor) -> dict[str, Tensor]:
        """The gradients of B, C, A, D and the bias from their partial sums, by argument."""
        call, scan, grads = self._call, self._scan, dict[str, Tensor]()
        owners: dict[str, list[int]] = {}
        for index, direction in enumerate(scan.directions()):
            for name in ("A", "B", "C", "D", "delta_bias"):
                if getattr(direction, name) is not None:
                    owners.setdefault(scan.own(name, direction.suffix), []).append(index)
        for owner, of in owners.items():
            name = owner.removesuffix("_b")
            if name in ("B", "C"):
                grads[owner] = self._rows(dBC, of, (name == "C") * padded(call.size))
            elif name == "A":
                grads[owner] = self._parameter(dA, of, 0, call.size, padded(call.size))
            else:
                offset = (name == "delta_bias") * call.channels
                grads[owner] = self._parameter(dD, of, offset, 1, 1).squeeze(1)
        call.kernels.launch("scan_reduce", self._blocks, _REDUCE_THREADS, 0, self._reduction)
        return grads

    def _rows(self, partial: Tensor, of: list[int], offset: int) -> Tensor:
        """dB or dC (B, groups, N, L), over tiles and directions."""
        call = self._call
        groups, tiles = int(call.job.groups), partial.shape[2]
        shape = (call.batch, call.length, groups, call.size)
        out = call._like.new_empty(shape, dtype=call.dtype)
        per_batch, per_direction, per_tile, per_token, _ = partial.stride()
        per_group = tiles // groups
        axes = [
            (call.batch, per_batch, out.stride(0)),
            (groups, per_group * per_tile, out.stride(2)),
            (call.length, per_token, out.stride(1)),
            (call.size, 1, 1),
        ]
        source = partial[0, of[0]].data_ptr() + 4 * offset
        self._add(source, out, axes, (len(of), per_direction), (per_group, per_tile))
        return out.permute(0, 2, 3, 1)

    def _parameter(self, partial: Tensor, of: list[int], offset: int, n: int, row: int) -> Tensor:
        """(D, n) over the batch, directions and segments."""
        call = self._call
        out = call.floats(call.channels, n)
        per_batch, _, per_segment, *_ = partial.stride()
        axes = [(1, 0, 0), (1, 0, 0), (call.channels, row, n), (n, 1, 1)]
        segments = len(of) * int(call.job.segments)
        source = partial[0, of[0]].data_ptr() + 4 * offset
        self._add(source, out, axes, (call.batch, per_batch), (segments, per_segment))
        return out

    def _add(
        self,
        source: int,
        out: Tensor,
        axes: Sequence[tuple[int, int, int]],
        outer: tuple[int, int],
        inner: tuple[int, int],
    ) -> None:
        job = self._reduction.jobs[self._reduction.count]
        self._reduction.count += 1
        job.source, job.target = source, out.data_ptr()
        for axis, values in zip(job.axes, axes, strict=True):
            axis.size, axis.source, axis.target = values
        (job.outer, job.outer_stride), (job.inner, job.inner_stride) = outer, inner
        job.half, job.first_block = out.dtype != torch.float32, self._blocks
        self._blocks += _ceil(math.prod(size for size, _, _ in axes), _REDUCE_THREADS)
