"""Launches the CUDA C++ scan (scan.cu). The variant is a pure function of shapes and device."""

import ctypes
import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from model.scan.cuda import launch
from model.scan.cuda.launch import Int, Long, Pointer, Strided, Unsigned
from model.scan.cuda.plan import (
    CHUNK,
    MAX_STATES,
    Plan,
    backward_shared,
    ceil_div,
    chunks_of,
    macros,
    padded,
)
from model.scan.problem import Direction, Forward, Scan, ScanError, placed, token_major

_REDUCE_THREADS = 128
_MAX_JOBS = 10


class _Rows(ctypes.Structure):
    _fields_ = [
        ("data", Pointer),
        *((name, Long) for name in ("batch", "group")),
        *((name, Unsigned) for name in ("state", "token")),
    ]

    @classmethod
    def of(cls, tensor: Tensor) -> "_Rows":
        """The structure of a tensor (B, groups, N, L)."""
        size = tensor.element_size()
        return cls(tensor.data_ptr(), *(size * stride for stride in tensor.stride()))


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
        *(
            (name, Pointer)
            for name in (
                "y",
                "du",
                "ddelta",
                "kept",
                "last",
                "start",
                "dlast",
                "dstart",
                "ends",
                "steps",
            )
        ),
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


def takes(scan: Scan) -> bool:
    """Whether the kernels can run ``scan``.

    They know neither constant B and C, nor a state size that does not fit into a lane's registers.
    """
    mixing = [t for d in scan.directions() for t in (d.B, d.C)]
    return all(tensor.dim() == 4 for tensor in mixing) and scan.shape[3] <= MAX_STATES


def states_shape(scan: Scan) -> Sequence[int]:
    """Shape of the kept states: the state before each chunk, in fours."""
    batch, channels, length, size = scan.shape
    return batch, len(scan.directions()), chunks_of(length), padded(size) // 4, channels, 4


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
    scan: Scan,
    dout: Tensor,
    dlast_state: Tensor | None,
    pre_gate: Tensor,
    states: Tensor,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """See ``op.Kernels``. No atomics: partial sums are added in a fixed order."""
    call = _Call(scan)
    job, grads = call.job, dict[str, Tensor]()
    job.dout, job.kept = call.strided(dout), states.data_ptr()
    job.dlast = call.dense(dlast_state)
    if scan.initial_state is not None:
        grads["initial_state"] = call.floats(call.batch, call.channels, call.size)
        job.dstart = grads["initial_state"].data_ptr()
    if scan.z is not None:
        dz = call.memory("z", into)
        grads["z"] = call.activation() if dz is None else dz
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
    warps = call.plan.backward_warps
    shared = backward_shared(call.size, warps, job.directions)
    call.launch("scan_backward", tiles, 32 * warps * job.directions, shared)
    return placed(grads | _Reducer(call, scan, into).run(dBC, dA, dD), into)


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
        job.start = self.dense(scan.initial_state)
        job.softplus, job.first_token = scan.delta_softplus, scan.first_token
        for direction, to in zip(directions, job.direction, strict=False):
            self._fill(direction, to)
        if scan.z is not None:
            job.z = self.strided(scan.z)
        card = launch.card(scan.u.device)
        self.plan = Plan.of(len(directions), *scan.shape, job.groups, card)
        states_given = scan.initial_state is not None or scan.return_last_state
        warps = self.plan.backward_warps
        variant = macros(self.dtype, self.size, warps, card.shared, states_given)
        self.kernels = launch.load("scan.cu", variant, scan.u.device)

    def _fill(self, direction: Direction, to: _Direction) -> None:
        to.u, to.delta = self.strided(direction.u), self.strided(direction.delta)
        to.B, to.C = (_Rows.of(self._kept(tensor)) for tensor in (direction.B, direction.C))
        to.A, to.D = self.dense(direction.A), self.dense(direction.D)
        to.bias = self.dense(direction.delta_bias)
        to.reverse, to.masked = direction.reverse, direction.mask_current

    def _kept(self, tensor: Tensor) -> Tensor:
        self._alive.append(within_reach(tensor.to(self.dtype)))
        return self._alive[-1]

    def strided(self, tensor: Tensor) -> Strided:
        """An activation as the kernels take it, copied only when its dtype or strides don't fit."""
        return Strided.of(self._kept(tensor))

    def memory(self, name: str, into: Mapping[str, Tensor] | None) -> Tensor | None:
        """The memory for a gradient, when the kernels can write there; else None."""
        tensor = (into or {}).get(name)
        return tensor if tensor is not None and tensor.dtype == self.dtype else None

    def dense(self, tensor: Tensor | None) -> int | None:
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
        """A (B, D, L) in the dtype of the activations, its memory laid out (B, L, D)."""
        return token_major(self.batch, self.channels, self.length, self._like, self.dtype)

    def cut(self, segments: int) -> None:
        """Divide the tokens into about ``segments`` segments of whole chunks."""
        chunks = chunks_of(self.length)
        self.job.segment_chunks = ceil_div(chunks, segments)
        self.job.segments = segments = ceil_div(chunks, self.job.segment_chunks)
        if segments > 1:
            rows = (self.batch, self.job.directions, segments)
            ends = self.floats(*rows, padded(self.size) // 4, self.channels, 4)
            steps = self.floats(*rows, self.channels)
            self._alive += [ends, steps]
            self.job.ends, self.job.steps = ends.data_ptr(), steps.data_ptr()

    def tiles(self, states: int) -> int:
        """Tiles of ``states`` channels x states in all groups; see ``part_of_block``."""
        per_group = self.channels // self.job.groups
        return int(self.job.groups) * ceil_div(per_group * padded(self.size), states)

    def walk(self, name: str) -> None:
        threads, shared = 32 * self.job.directions, 4 * CHUNK * 2 * padded(self.size)
        self.launch(name, self.tiles(256), threads, shared * self.job.directions)

    def launch(self, name: str, tiles: int, threads: int, shared: int) -> None:
        blocks = tiles * self.batch * self.job.segments
        if blocks >= 2**31:
            raise ScanError(
                f"scan: batch {self.batch} x {self.channels} channels make {blocks} blocks, more "
                "than a GPU can be given at once; split the batch"
            )
        self.kernels.launch(name, blocks, threads, shared, self.job)


def within_reach(tensor: Tensor) -> Tensor:
    """``tensor``, or a dense copy where neighbours in a sample are 4 GiB apart or more.

    The kernels have 32 bits for these strides; only samples may be further apart.
    """
    steps = (tensor.element_size() * stride for stride in tensor.stride()[1:])
    return tensor if max(steps) < 2**32 else tensor.contiguous()


def _common_dtype(scan: Scan) -> torch.dtype:
    """The dtype of the activations where they agree; float32 otherwise."""
    activations = ((n, t) for n, t in scan.tensors() if t.dim() >= 3 and n != "initial_state")
    dtypes = {tensor.dtype for _, tensor in activations}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


class _Reducer:
    """Adds up the partial sums of a backward pass in one launch."""

    def __init__(self, call: _Call, scan: Scan, into: Mapping[str, Tensor] | None) -> None:
        self._call, self._scan, self._into = call, scan, into
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
                grads[owner] = self._rows(dBC, owner, of, (name == "C") * padded(call.size))
            elif name == "A":
                grads[owner] = self._parameter(dA, of, 0, call.size, padded(call.size))
            else:
                offset = (name == "delta_bias") * call.channels
                grads[owner] = self._parameter(dD, of, offset, 1, 1).squeeze(1)
        call.kernels.launch("scan_reduce", self._blocks, _REDUCE_THREADS, 0, self._reduction)
        return grads

    def _rows(self, partial: Tensor, owner: str, of: list[int], offset: int) -> Tensor:
        """Queue the sum over tiles and directions that is dB or dC (B, groups, N, L)."""
        call = self._call
        groups, tiles = int(call.job.groups), partial.shape[2]
        shape = (call.batch, call.length, groups, call.size)
        memory = call.memory(owner, self._into)
        if memory is None:
            out = call._like.new_empty(shape, dtype=call.dtype)
        else:
            out = (memory if memory.dim() == 4 else memory[:, None]).permute(0, 3, 1, 2)
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
        """Queue the sum over batch, directions and segments that is a gradient (D, n)."""
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
        self._blocks += ceil_div(math.prod(size for size, _, _ in axes), _REDUCE_THREADS)
