"""The Triton kernels are right under the interpreter and compile for a GPU without having one."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")
HERE = Path(__file__).parent


def test_kernels_agree_with_the_reference_under_the_interpreter() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "triton_interpreted.py"],
        cwd=HERE,
        env=os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout
    assert " failed" not in done.stdout


COMPILE = """
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
import triton
from model.scan.gpu import conv, norm

HALF = {"x", "dx", "out", "dout", "normed", "dnormed"}

def compile(kernel, options, warps=4):
    ints = {"channels", "length", "size", "rows", "width"}
    def kind(name):
        if name in options:
            return "constexpr"
        if name == "eps":
            return "fp32"
        is_int = name in ints or name[-2:] in {"_b", "_d", "_l", "_n"}
        return "i32" if is_int else "*bf16" if name in HALF else "*fp32"
    names = [parameter.name for parameter in kernel.params]
    source = ASTSource(kernel, {name: kind(name) for name in names}, constexprs=options)
    triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})

shape = {"HAS_BIAS": True, "REVERSE": True, "TAPS": 4, "TOKENS": conv._TOKENS}
for kernel in (conv._forward_kernel, conv._backward_kernel):
    compile(kernel, shape | {"CHANNELS": conv._CHANNELS})
compile(norm._forward_kernel, {"HAS_RESIDUAL": True, "ROWS": norm._ROWS, "WIDTH": 1024})
compile(norm._backward_kernel, {"ROWS": norm._ROWS, "WIDTH": 1024})
print("compiled")
"""


@pytest.mark.slow
def test_kernels_compile_for_hopper(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pytestconfig: pytest.Config
) -> None:
    """Through Triton's own compiler down to machine code; no GPU is needed for that."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path))
    script = tmp_path / "compile_kernels.py"
    script.write_text(COMPILE)
    monkeypatch.setenv("PYTHONPATH", str(pytestconfig.rootpath))
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True)
    assert done.stdout == "compiled\n", done.stderr
