"""Compiles a .cu file against ``cuda_on_host.hpp`` and launches its kernels over CPU tensors.

``HostKernels`` stands where ``model.scan.cuda.launch`` puts kernels loaded on a GPU, so that the
launcher code of the product runs unchanged. Each variant (file and macros) is compiled once.
"""

import ctypes
import functools
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import torch

from model.scan.build_cache import cached
from model.scan.cuda.compile import SOURCES, Macros

HERE = Path(__file__).parent
_FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-w", "-U_FORTIFY_SOURCE", "-ffp-contract=fast")


class HostKernels:
    """The kernels of one variant; see ``launch.LoadedKernels``."""

    def __init__(self, library: Path) -> None:
        self._library = ctypes.CDLL(str(library))

    def launch(
        self, name: str, blocks: int, threads: int, shared: int, parameters: ctypes.Structure
    ) -> None:
        getattr(self._library, name)(ctypes.byref(parameters), blocks, threads, shared)


def load(source: str, macros: Macros, device: torch.device) -> HostKernels:
    """Stands in for ``launch.load``."""
    assert device.type == "cpu"
    return _load(source, tuple(sorted(macros.items())))


@functools.cache
def _load(source: str, macros: Sequence[tuple[str, str | int]]) -> HostKernels:
    defines = [f"-D{name}={value}" for name, value in macros]
    digest = hashlib.sha256(repr((source, defines, _FLAGS)).encode())
    for path in [SOURCES / source, *sorted(SOURCES.glob("*.cuh")), HERE / "cuda_on_host.hpp"]:
        digest.update(path.read_bytes())

    def compile_for_host(path: Path) -> None:
        command = [*("g++", *_FLAGS, *defines), *("-include", str(HERE / "cuda_on_host.hpp"))]
        command += ["-x", "c++", str(SOURCES / source), "-o", str(path)]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr

    name = f"host-{Path(source).stem}-{digest.hexdigest()[:24]}.so"
    return HostKernels(cached(name, compile_for_host))
