"""What a backward pass of the scan's kernels takes from layouts; see ``prepare.py``."""

import math
from collections.abc import Mapping, Sequence

import torch

from model.scan.cuda.launch import Strided
from model.scan.cuda.plan import backward_shared, ceil_div, padded
from model.scan.cuda.prepare import Output, Prepared, strided
from model.scan.cuda.structures import Reduction, sum_word, word
from model.scan.problem import Layout, Scan

REDUCE_THREADS = 128


class PreparedBackward(Prepared):
    """The outputs are gradients by argument, but for those that ``into`` has memory for."""

    def __init__(
        self,
        scan: Scan,
        device: torch.device,
        dout: Layout,
        dlast_state: Layout | None,
        into: Mapping[str, Layout],
    ) -> None:
        super().__init__(scan, device)
        job = self.job
        # The kernels write there only what they write with any strides.
        self.into = {
            name: memory
            for name, memory in into.items()
            if name[0] in "BCz" and memory.dtype == self.dtype
        }
        self.given: dict[str, tuple[int, ...]] = {}  # words of the job, by gradient in ``into``
        self.take("dout", dout.without_memory(), [word("dout")])
        job.dout = Strided.of(self.fit(dout.without_memory()))
        if dlast_state is not None:
            self.take("dlast", dlast_state.without_memory(), [word("dlast")])
        if scan.initial_state is not None:
            shape = (self.batch, self.channels, self.size)
            self.add_output("initial_state", self.floats(*shape), word("dstart"))
        if scan.z is not None:
            dz = self.into.get("z", self.activation())
            self.move(dz)
            job.dz = strided(dz)
            self._add_gradient("z", self.activation(), word("dz"))
        self._add_activations()
        self.cut(self.plan.backward_segments)
        self._add_partials()
        if job.segments > 1:
            self.walk("scan_adjoint_ends")
        warps = self.plan.backward_warps
        shared = backward_shared(self.size, warps, job.directions)
        tiles = self.tiles(256 * warps)
        self.launch("scan_backward", tiles, 32 * warps * job.directions, shared)

    def _add_gradient(self, name: str, layout: Layout, *words: int) -> None:
        if name in self.into:
            self.given[name] = words
        else:
            self.add_output(name, layout, *words)

    def _add_activations(self) -> None:
        """The gradients of u and delta, and the sums of the direction that comes first."""
        directions, job = self.scan.directions(), self.job
        for name in ("u", "delta"):
            owners: dict[str, list[int]] = {}
            for index, direction in enumerate(directions):
                setattr(job.direction[index], f"d{name}", strided(self.activation()))
                owner = self.scan.own(name, direction.suffix)
                owners.setdefault(owner, []).append(word(f"d{name}", index))
            for owner, words in owners.items():
                self.add_output(owner, self.activation(), *words)
            if len(directions) == 2 and len(owners) == 1:  # see scan.cuh
                setattr(job, f"shared_{name}", 1)
                self.workspace.add(f"d{name}", self.batch, self.length, self.channels)

    def _add_partials(self) -> None:
        """The partial sums over blocks, and the sums of these in one launch."""
        job, n = self.job, padded(self.size)
        tiles = self.tiles(256 * self.plan.backward_warps)
        rows = (self.batch, job.directions, job.segments)
        dBC = (self.batch, job.directions, tiles, self.length, 2 * n)
        firsts = {
            "dBC": self.workspace.add("dBC", *dBC),
            "dA": self.workspace.add("dA", *rows, self.channels, n),
            "dD": self.workspace.add("dD", *rows, 2, self.channels),
        }
        self.sums = Sums(self, firsts, tiles)


class Sums:
    """The parameters of the launch that adds up the partial sums of a backward pass.

    They come from the workspace. Each fills a gradient.
    """

    def __init__(self, call: PreparedBackward, firsts: Mapping[str, int], tiles: int) -> None:
        self._call, self._tiles = call, tiles
        self.reduction, self.blocks = Reduction(), 0
        self.sources: list[tuple[int, int]] = []  # word of the reduction, byte of the workspace
        self.outputs: list[Output] = []  # their words are those of the reduction
        self.given: dict[str, tuple[int, ...]] = {}
        owners: dict[str, list[int]] = {}
        for index, direction in enumerate(call.scan.directions()):
            for name in ("A", "B", "C", "D", "delta_bias"):
                if getattr(direction, name) is not None:
                    owners.setdefault(call.scan.own(name, direction.suffix), []).append(index)
        channels, n = call.channels, padded(call.size)
        for owner, of in owners.items():
            name = owner.removesuffix("_b")
            if name in ("B", "C"):
                self._add_rows(firsts["dBC"] + 4 * n * (name == "C"), owner, of)
            elif name == "A":
                shape = call.floats(channels, call.size)
                self._add_parameter(firsts["dA"], owner, of, channels * n, n, shape)
            else:
                first = firsts["dD"] + 4 * channels * (name == "delta_bias")
                self._add_parameter(first, owner, of, 2 * channels, 1, call.floats(channels))

    def _add_rows(self, first: int, owner: str, of: Sequence[int]) -> None:
        """The sum over tiles and directions that is dB or dC, of the shape of the argument."""
        call = self._call
        groups, row = int(call.job.groups), 2 * padded(call.size)
        per_group, per_tile = self._tiles // groups, call.length * row
        per_direction = self._tiles * per_tile
        layout = call.into.get(owner) or call.mixing(getattr(call.scan, owner).dim())
        batch, *group, state, token = layout.stride
        axes = [
            (call.batch, call.job.directions * per_direction, batch),
            (groups, per_group * per_tile, group[0] if group else 0),
            (call.length, row, token),
            (call.size, 1, state),
        ]
        first += 4 * of[0] * per_direction
        self._add(first, owner, layout, axes, (len(of), per_direction), (per_group, per_tile))

    def _add_parameter(
        self, first: int, owner: str, of: Sequence[int], per_segment: int, step: int, layout: Layout
    ) -> None:
        """The sum over batch, directions and segments that is a gradient (D, N) or (D)."""
        call, columns = self._call, math.prod(layout.shape[1:])
        segments, directions = int(call.job.segments), int(call.job.directions)
        per_direction = segments * per_segment
        axes = [(1, 0, 0), (1, 0, 0), (call.channels, step, columns), (columns, 1, 1)]
        first += 4 * of[0] * per_direction
        outer = (call.batch, directions * per_direction)
        self._add(first, owner, layout, axes, outer, (len(of) * segments, per_segment))

    def _add(
        self,
        first: int,
        owner: str,
        layout: Layout,
        axes: Sequence[tuple[int, int, int]],
        outer: tuple[int, int],
        inner: tuple[int, int],
    ) -> None:
        index = self.reduction.count
        self.reduction.count += 1
        to = self.reduction.sums[index]
        for axis, values in zip(to.axes, axes, strict=True):
            axis.size, axis.source, axis.target = values
        (to.outer, to.outer_stride), (to.inner, to.inner_stride) = outer, inner
        to.half, to.first_block = layout.dtype != torch.float32, self.blocks
        self.blocks += ceil_div(math.prod(size for size, _, _ in axes), REDUCE_THREADS)
        self.sources.append((sum_word("source", index), first))
        words = (sum_word("target", index),)
        if owner in self._call.into:
            self.given[owner] = words
        else:
            self.outputs.append(Output(owner, layout, words))
