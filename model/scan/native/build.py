"""Compiles the C++ kernels on first use, or ahead of time with `python -m model.scan.native.build`.

The library is plain C ABI without torch headers, so that it builds in seconds. It lands in a cache
directory under a name that hashes the sources, the compiler, the flags and the CPU's features.
"""

import functools
import hashlib
import os
import platform
import shutil
import subprocess
from pathlib import Path

from model.scan.build_cache import BuildError, cached

_SOURCES = Path(__file__).parent
# Never -ffast-math: linking with it switches the whole process to flush-to-zero.
_FLAGS = (
    *("-std=c++17", "-O3", "-fPIC", "-shared", "-fopenmp", "-w"),
    *("-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast"),
)
_TIMEOUT_S = 300


@functools.cache
def build_library() -> Path:
    """Path of the compiled library; compiles it when the cache has none for this machine.

    Raises:
        BuildError: there is no compiler, or it failed.
    """
    compiler = _compiler()
    command = [compiler, *_FLAGS, *_machine_flags(), *sorted(map(str, _SOURCES.glob("*.cpp")))]
    return cached(f"kernels-{_fingerprint(command)}.so", lambda path: _compile(command, path))


def _compile(command: list[str], library: Path) -> None:
    try:
        subprocess.run(
            [*command, "-o", str(library)],
            check=True,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT_S,
        )
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"status {error.returncode}"]
        first = next((line for line in lines if "error" in line), lines[0])
        raise BuildError(f"scan: {' '.join(command)} failed: {first}") from error
    except subprocess.TimeoutExpired as error:
        raise BuildError(f"scan: {command[0]} took more than {_TIMEOUT_S} s") from error


def _compiler() -> str:
    wanted = os.environ.get("CXX")
    for name in (wanted,) if wanted else ("g++", "c++", "clang++"):
        if path := shutil.which(name):
            return path
    missing = wanted or "g++, c++ or clang++"
    raise BuildError(f"scan: no C++ compiler ({missing} not found); install g++ or set CXX")


def _machine_flags() -> tuple[str, ...]:
    return ("-mcpu=native",) if platform.machine() == "aarch64" else ("-march=native",)


def _fingerprint(command: list[str]) -> str:
    version = subprocess.run(
        [command[0], "--version"], check=True, capture_output=True, text=True
    ).stdout
    digest = hashlib.sha256("\0".join([*command, version, _cpu_features()]).encode())
    for source in sorted(_SOURCES.glob("*.?pp")):
        digest.update(source.read_bytes())
    return digest.hexdigest()[:24]


def _cpu_features() -> str:
    """The CPU features behind -march=native, in which nodes that share a home may differ."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    keys = ("flags", "Features", "model", "model name", "CPU part")
    described = {line for line in lines if line.split(":")[0].strip() in keys}
    return platform.machine() + "\n".join(sorted(described))


if __name__ == "__main__":
    print(build_library())
