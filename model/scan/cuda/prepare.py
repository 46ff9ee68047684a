"""All of a call of the scan's kernels that follows from layouts, worked out once for each layout.

A training step calls the scan with the same layouts in every layer. What is left to do per call is
to fill in addresses. Here tensors are on the device "meta": they have layouts and no memory.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from model.scan.cuda import launch
from model.scan.cuda.compile import Macros
from model.scan.cuda.launch import Strided
from model.scan.cuda.plan import (
    CHUNK,
    MAX_STATES,
    Plan,
    ceil_div,
    chunks_of,
    macros,
    padded,
)
from model.scan.cuda.structures import Job, Rows, word
from model.scan.problem import Layout, Scan, ScanError, token_major

_ALIGNMENT = 64  # floats: the parts of a workspace begin at multiples of 256 bytes

Change = Callable[[Tensor], Tensor]


class Input(NamedTuple):
    """A tensor that a kernel reads: its name, how it is converted, and where its address goes."""

    name: str
    change: Change | None
    """None when the kernels take the tensor as it is."""
    words: tuple[int, ...]
    """See ``structures.word``."""
    in_pairs: bool
    """Whether kernels move neighbouring channels of it as one word."""


class Output(NamedTuple):
    """A tensor to allocate, and where its address goes."""

    name: str
    layout: Layout
    words: tuple[int, ...]


class Launch(NamedTuple):
    """A kernel with its number of blocks, threads of a block and bytes of shared memory."""

    kernel: str
    blocks: int
    threads: int
    shared: int


class Workspace:
    """Scratch memory of one call, divided into parts of whole cache lines."""

    def __init__(self) -> None:
        self.floats = 0
        self.parts: list[tuple[int, int]] = []  # word of the job, first byte

    def add(self, name: str, *shape: int) -> int:
        """Reserve a part for the pointer ``name`` of a job. Returns its first byte."""
        first = 4 * self.floats
        self.parts.append((word(name), first))
        self.floats += ceil_div(math.prod(shape), _ALIGNMENT) * _ALIGNMENT
        return first


class Prepared:
    """A call without addresses."""

    def __init__(self, scan: Scan, device: torch.device) -> None:
        self.batch, self.channels, self.length, self.size = scan.shape
        self.scan, self.dtype = scan, common_dtype(scan)
        self.width = 2 if self.channels // scan.groups % 2 == 0 else 1
        """The channels that a lane moves at once; 1 also where an address is odd."""
        self.inputs: list[Input] = []
        self.outputs: list[Output] = []
        self.launches: list[Launch] = []
        self.workspace = Workspace()
        self.job = job = Job()
        job.batch, job.channels, job.length, job.states = scan.shape
        job.groups = scan.groups
        directions = scan.directions()
        job.directions = len(directions)
        job.softplus, job.first_token = scan.delta_softplus, scan.first_token
        words: dict[str, list[int]] = {}
        for index, (direction, to) in enumerate(zip(directions, job.direction, strict=False)):
            to.reverse, to.masked = direction.reverse, direction.mask_current
            for name in ("u", "delta", "B", "C", "A", "D", "delta_bias"):
                words.setdefault(scan.own(name, direction.suffix), []).append(word(name, index))
        for owner, of in words.items():
            self.take(owner, getattr(scan, owner), of)
        for direction, to in zip(directions, job.direction, strict=False):
            for name in ("u", "delta"):
                setattr(to, name, Strided.of(self.fit(getattr(direction, name))))
            for name in ("B", "C"):
                setattr(to, name, Rows.of(self.fit(getattr(direction, name))))
        self.take("initial_state", scan.initial_state, [word("initial_state")])
        if scan.z is not None:
            self.take("z", scan.z, [word("z")])
            job.z = Strided.of(self.fit(scan.z))
        card = launch.card(device)
        self.plan = Plan.of(len(directions), *scan.shape, job.groups, card)
        states_given = scan.initial_state is not None or scan.return_last_state
        common = (self.dtype, self.size, self.plan.backward_warps, card.shared, states_given)
        self.macros: dict[int, Macros] = {width: macros(*common, width) for width in (1, 2)}

    def fit(self, tensor: Tensor) -> Tensor:
        return within_reach(tensor.to(self.dtype))

    def take(self, name: str, tensor: Tensor | None, words: Sequence[int]) -> None:
        """Read ``tensor``, activation or parameter, as the kernels need it."""
        if tensor is None:
            return
        is_activation = tensor.dim() >= 3 and name not in _DENSE
        change: Change = self.fit if is_activation else dense
        changed = change(tensor)
        in_pairs = is_activation and name[0] not in "BC"
        if in_pairs:
            self.move(Layout(changed.shape, changed.stride(), changed.dtype))
        unchanged = changed is tensor
        self.inputs.append(Input(name, None if unchanged else change, tuple(words), in_pairs))

    def move(self, layout: Layout) -> None:
        """Note that kernels move rows of ``layout``, which need even places for pairs."""
        batch, channel, token = layout.stride
        if channel != 1 or batch % 2 or token % 2:
            self.width = 1

    def activation(self) -> Layout:
        """(B, D, L) in the dtype of the activations, its memory laid out (B, L, D)."""
        return self._sequence(self.dtype)

    def sequence(self) -> Layout:
        """A float32 (B, D, L), its memory laid out (B, L, D)."""
        return self._sequence(torch.float32)

    def _sequence(self, dtype: torch.dtype) -> Layout:
        like = self.scan.u
        made = token_major(self.batch, self.channels, self.length, like, dtype)
        return Layout(made.shape, made.stride(), dtype)

    def floats(self, *shape: int) -> Layout:
        return Layout(shape, torch.empty(shape, device="meta").stride(), torch.float32)

    def mixing(self, axes: int) -> Layout:
        """A gradient (B, G, N, L) or, of three axes, (B, N, L), token-major."""
        shape = (self.batch, self.length, int(self.job.groups), self.size)
        made = torch.empty(shape, dtype=self.dtype, device="meta").permute(0, 2, 3, 1)
        made = made if axes == 4 else made.squeeze(1)
        return Layout(made.shape, made.stride(), self.dtype)

    def add_output(self, name: str, layout: Layout, *words: int) -> None:
        self.outputs.append(Output(name, layout, words))

    def cut(self, segments: int) -> None:
        """Divide the tokens into about ``segments`` segments of whole chunks."""
        chunks = chunks_of(self.length)
        self.job.segment_chunks = ceil_div(chunks, segments)
        self.job.segments = segments = ceil_div(chunks, self.job.segment_chunks)
        if segments > 1:
            rows = (self.batch, self.job.directions, segments)
            self.workspace.add("ends", *rows, padded(self.size) // 4, self.channels, 4)
            self.workspace.add("steps", *rows, self.channels)

    def tiles(self, states: int) -> int:
        """Tiles of ``states`` channels x states in all groups; see ``part_of_block``."""
        per_group = self.channels // self.job.groups
        return int(self.job.groups) * ceil_div(per_group * padded(self.size), states)

    def walk(self, kernel: str) -> None:
        threads, shared = 32 * self.job.directions, 4 * CHUNK * 2 * padded(self.size)
        self.launch(kernel, self.tiles(256), threads, shared * self.job.directions)

    def launch(self, kernel: str, tiles: int, threads: int, shared: int) -> None:
        blocks = tiles * self.batch * self.job.segments
        if blocks >= 2**31:
            raise ScanError(
                f"scan: batch {self.batch} x {self.channels} channels make {blocks} blocks, more "
                "than a GPU can be given at once; split the batch"
            )
        self.launches.append(Launch(kernel, blocks, threads, shared))


class PreparedForward(Prepared):
    """The outputs are out, y (when anything reads it), the kept states and the last state."""

    def __init__(self, scan: Scan, device: torch.device, keep: bool) -> None:
        super().__init__(scan, device)
        out = self.activation()
        self.job.out = strided(out)
        self.add_output("out", out, word("out"))
        self.keep_total = keep and scan.z is not None
        if self.keep_total or self.job.directions == 2:
            self.add_output("y", self.sequence(), word("y"))
        if keep:
            self.add_output("states", self.floats(*states_shape(scan)), word("kept"))
        if scan.return_last_state:
            shape = (self.batch, self.channels, self.size)
            self.add_output("last", self.floats(*shape), word("last"))
        self.job.keep_total = self.keep_total
        self.cut(self.plan.forward_segments)
        if self.job.segments > 1:
            self.walk("scan_ends")
        self.walk("scan_forward")


_DENSE = ("initial_state", "dlast")


def dense(tensor: Tensor) -> Tensor:
    """``tensor`` in float32 and contiguous."""
    return tensor.to(torch.float32).contiguous()


def within_reach(tensor: Tensor) -> Tensor:
    """``tensor``, or a dense copy where neighbours in a sample are 4 GiB apart or more.

    The kernels have 32 bits for these strides; only samples may be further apart.
    """
    steps = (tensor.element_size() * stride for stride in tensor.stride()[1:])
    return tensor if max(steps) < 2**32 else tensor.contiguous()


def common_dtype(scan: Scan) -> torch.dtype:
    """The dtype of the activations where they agree; float32 otherwise."""
    activations = ((n, t) for n, t in scan.tensors() if t.dim() >= 3 and n != "initial_state")
    dtypes = {tensor.dtype for _, tensor in activations}
    return dtypes.pop() if len(dtypes) == 1 else torch.float32


def states_shape(scan: Scan) -> Sequence[int]:
    """Shape of the kept states: the state before each chunk, in fours."""
    batch, channels, length, size = scan.shape
    return batch, len(scan.directions()), chunks_of(length), padded(size) // 4, channels, 4


def takes(scan: Scan) -> bool:
    """Whether the kernels can run ``scan``.

    They know neither constant B and C, nor a state size that does not fit into a lane's registers.
    """
    mixing = (scan.B, scan.C, scan.B_b, scan.C_b)
    is_constant = any(tensor is not None and tensor.dim() == 2 for tensor in mixing)
    return not is_constant and scan.shape[3] <= MAX_STATES


def strided(layout: Layout) -> Strided:
    return Strided.of(layout.without_memory())
