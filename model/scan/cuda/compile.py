"""Compiles the CUDA C++ kernels to machine code with NVRTC; the one module that imports cuda-core.

A GPU machine needs neither nvcc nor CUDA headers: NVRTC comes with CUDA builds of torch, and the
sources include nothing but each other. Compiling needs no GPU and no driver. Machine code lands in
the cache under a name that hashes the sources, the macros, the architecture, NVRTC's version and
the options.
"""

import functools
import hashlib
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from model.scan.build_cache import BuildError, cached

SOURCES = Path(__file__).parent
ARCHITECTURES = {
    "sm_80": 164 * 1024,
    "sm_86": 100 * 1024,
    "sm_89": 100 * 1024,
    "sm_90": 228 * 1024,
    "sm_100": 228 * 1024,
    "sm_120": 100 * 1024,
}
"""The architectures that continuous integration compiles for, each with the bytes of shared memory
of a multiprocessor. NVRTC also takes others that it knows."""

Macros = Mapping[str, str | int]


@dataclass(frozen=True)
class Resources:
    """What ptxas reports for one kernel, per thread; the stack and spills are in bytes."""

    kernel: str
    registers: int
    stack: int
    spill_stores: int
    spill_loads: int


def build_cubin(source: str, macros: Macros, architecture: str) -> Path:
    """Path of the machine code of ``source`` (a file name here); compiled when not in the cache.

    Its neighbour ``.ptxas`` holds what the assembler said, for ``resources``.

    Raises:
        BuildError: cuda-core or NVRTC is missing, or the compilation failed.
    """
    name = f"{Path(source).stem}-{architecture}-{_fingerprint(source, macros, architecture)}"

    def make_code(path: Path) -> None:
        code, said = _compile(source, macros, architecture)
        path.write_bytes(code)
        path.with_name(f"{name}.ptxas").write_text(said)

    return cached(f"{name}.cubin", make_code)


def resources(cubin: Path) -> tuple[Resources, ...]:
    """Registers and spills of every kernel in a cubin that ``build_cubin`` made."""
    log = cubin.with_suffix(".ptxas").read_text()
    pattern = re.compile(
        r"Function properties for (\w+)\s.*?(\d+) bytes stack frame, (\d+) bytes spill stores, "
        r"(\d+) bytes spill loads\s.*?Used (\d+) registers",
        re.DOTALL,
    )
    return tuple(
        Resources(kernel, int(registers), int(stack), int(stores), int(loads))
        for kernel, stack, stores, loads, registers in pattern.findall(log)
    )


def why_unavailable() -> str | None:
    """Why nothing can be compiled here; None when it can."""
    try:
        _nvrtc_version()
    except BuildError as error:
        return str(error)
    return None


@functools.cache
def _nvrtc_version() -> str:
    try:
        import cuda.core  # noqa: F401  (half a second, and absent on most CPU machines)
        from cuda.bindings import nvrtc

        status, major, minor = nvrtc.nvrtcVersion()
    except Exception as error:  # a broken installation can raise anything
        raise BuildError(
            "scan: the CUDA kernels cannot be compiled: cuda-core or NVRTC is missing or broken "
            f"({type(error).__name__}: {error}); pip install 'videomambapro[gpu]'"
        ) from error
    if int(status) != 0:
        raise BuildError(f"scan: the CUDA kernels cannot be compiled: NVRTC says {status}")
    return f"{major}.{minor}"


def _options(macros: Macros, architecture: str) -> dict[str, object]:
    return {
        "std": "c++17",
        "arch": architecture,
        "include_path": [str(SOURCES)],
        "define_macro": [(name, str(value)) for name, value in sorted(macros.items())],
        "ptxas_options": ["-v"],
        "device_as_default_execution_space": True,  # generic lambdas need it
    }


def _fingerprint(source: str, macros: Macros, architecture: str) -> str:
    options = _options(macros, architecture) | {"include_path": None}
    digest = hashlib.sha256(repr((source, options, _nvrtc_version())).encode())
    for path in [SOURCES / source, *sorted(SOURCES.glob("*.cuh"))]:
        digest.update(path.read_bytes())
    return digest.hexdigest()[:24]


def _compile(source: str, macros: Macros, architecture: str) -> tuple[bytes, str]:
    from cuda.core import Program, ProgramOptions

    log = io.StringIO()
    text = (SOURCES / source).read_text()
    try:
        options = ProgramOptions(name=source, **_options(macros, architecture))
        code = Program(text, "c++", options).compile("cubin", logs=log).code
    except Exception as error:  # cuda-core raises another type for each library below
        lines = [*log.getvalue().splitlines(), *str(error).splitlines()]
        first = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        raise BuildError(f"scan: NVRTC failed on {source} for {architecture}: {first}") from error
    return bytes(code), log.getvalue()
