"""Launches the CUDA C++ scan (scan.cu). The variant is a pure function of shapes and device."""

import ctypes
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from model.scan.cuda import launch
from model.scan.cuda.prepare import Output, Prepared, PreparedForward, states_shape, takes
from model.scan.cuda.prepare_backward import REDUCE_THREADS, PreparedBackward
from model.scan.cuda.structures import Job, Reduction, word
from model.scan.problem import Forward, Layout, Layouts, Scan, placed

__all__ = ["backward", "forward", "states_shape", "takes"]

_LAYOUTS = 256  # a training run needs a few; evaluation on clips of any length, one for each
_KEPT, _Y = word("kept"), word("y")


@functools.lru_cache(_LAYOUTS)
def prepare_forward(layout: Layouts, device: torch.device, keep: bool) -> PreparedForward:
    """What is the same in every call with tensors of these layouts."""
    return PreparedForward(Scan.without_memory(layout), device, keep)


@functools.lru_cache(_LAYOUTS)
def prepare_backward(
    layout: Layouts,
    device: torch.device,
    dout: Layout,
    dlast_state: Layout | None,
    into: tuple[tuple[str, Layout], ...],
) -> PreparedBackward:
    """The same for a backward pass."""
    scan = Scan.without_memory(layout)
    return PreparedBackward(scan, device, dout, dlast_state, dict(into))


def forward(scan: Scan, keep: bool) -> Forward:
    """See ``op.ScanKernels``."""
    device = scan.u.device
    made = prepare_forward(scan.layout, device, keep)
    call = _Call(made, vars(scan), device)
    found = _allocated(made.outputs, call.words, device)
    call.run()
    out = found["out"].to(scan.u.dtype)
    if not made.keep_total:
        found.pop("y", None)
    kept = (found[n] if n in found else _absent(device) for n in ("y", "states", "last"))
    return Forward(out, *kept)


def backward(
    scan: Scan,
    dout: Tensor,
    dlast_state: Tensor | None,
    pre_gate: Tensor,
    states: Tensor,
    into: Mapping[str, Tensor] | None = None,
) -> dict[str, Tensor]:
    """See ``op.ScanKernels``. No atomics: partial sums are added in a fixed order."""
    device, into = scan.u.device, into or {}
    made = prepare_backward(
        scan.layout,
        device,
        Layout.of(dout),
        Layout.of(dlast_state),
        tuple((name, Layout.of(memory)) for name, memory in into.items()),
    )
    call = _Call(made, vars(scan) | {"dout": dout, "dlast": dlast_state}, device)
    call.words[_KEPT] = states.data_ptr()
    if scan.z is not None:
        call.words[_Y] = pre_gate.data_ptr()
        call.check_pairs(pre_gate.data_ptr() // pre_gate.element_size())
    grads = _allocated(made.outputs, call.words, device)
    grads |= _placed(made.given, call.words, into)
    if "z" in grads:
        call.check_pairs(grads["z"].data_ptr() // grads["z"].element_size())
    call.run()

    sums = made.sums
    reduction = Reduction.from_buffer_copy(sums.reduction)
    words = _words(reduction)
    for at, first in sums.sources:
        words[at] = call.workspace + first
    grads |= _allocated(sums.outputs, words, device)
    grads |= _placed(sums.given, words, into)
    call.kernels.launch("scan_reduce", sums.blocks, REDUCE_THREADS, 0, reduction)
    return placed(grads, into)


class _Call:
    """The parameters of a launch, and the tensors that they point to."""

    def __init__(self, made: Prepared, tensors: Mapping[str, Tensor], device: torch.device) -> None:
        self._made, self._device, self._width = made, device, made.width
        size = made.dtype.itemsize
        self._alive: list[Tensor] = []
        self._job = Job.from_buffer_copy(made.job)
        self.words = _words(self._job)
        for name, change, words, in_pairs in made.inputs:
            tensor = tensors[name]
            if change is not None:
                tensor = change(tensor)
                self._alive.append(tensor)
            address = _point(words, tensor, self.words)
            if in_pairs:
                self.check_pairs(address // size)
        self.workspace = 0
        if made.workspace.floats:
            memory = torch.empty(made.workspace.floats, dtype=torch.float32, device=device)
            self._alive.append(memory)
            self.workspace = memory.data_ptr()
            for at, first in made.workspace.parts:
                self.words[at] = self.workspace + first

    def check_pairs(self, element: int) -> None:
        """Note that a kernel moves rows that begin at this element of all memory."""
        if element % 2:
            self._width = 1

    def run(self) -> None:
        self.kernels = launch.load("scan.cu", self._made.macros[self._width], self._device)
        for kernel, blocks, threads, shared in self._made.launches:
            self.kernels.launch(kernel, blocks, threads, shared, self._job)


def _absent(device: torch.device) -> Tensor:
    """What stands for a result that nobody asked for."""
    return torch.empty(0, dtype=torch.float32, device=device)


def _words(structure: ctypes.Structure) -> Any:
    """The 8-byte words of ``structure``, into which addresses are written."""
    count = ctypes.sizeof(structure) // 8
    return (ctypes.c_uint64 * count).from_buffer(structure)


def _point(at: tuple[int, ...], tensor: Tensor, words: Any) -> int:
    """Write the address of ``tensor``, which is returned, into ``words``."""
    address = tensor.data_ptr()
    for index in at:
        words[index] = address
    return address


def _allocated(outputs: Sequence[Output], words: Any, device: torch.device) -> dict[str, Tensor]:
    """Fresh tensors by name, with their addresses in ``words``."""
    made = {}
    for name, (shape, stride, dtype), at in outputs:
        made[name] = torch.empty_strided(shape, stride, dtype=dtype, device=device)
        _point(at, made[name], words)
    return made


def _placed(
    given: Mapping[str, tuple[int, ...]], words: Any, into: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors of ``into`` that kernels write to, with their addresses in ``words``."""
    for name, at in given.items():
        _point(at, into[name], words)
    return {name: into[name] for name in given}
