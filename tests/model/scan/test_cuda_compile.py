"""The CUDA kernels compile once, safely, without a GPU, and say plainly when they cannot."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from model.scan.build_cache import BuildError
from model.scan.cuda import __main__ as ahead
from model.scan.cuda import compile as cuda_compile
from model.scan.cuda import norm
from model.scan.cuda.compile import build_cubin, resources

KERNEL = """
#include "common.cuh"
struct Parameters { Strided<TYPE> x; int length; };
KERNEL(twice, Parameters, 64, 1) {
  for (int t = threadIdx.x; t < q.length; t += 64) {
    TYPE* at = q.x.at(0, 0, t);
    store(at, 2.f * value(*at));
  }
}
"""

SMALL_NORM = norm.macros(torch.float32, torch.float32, 64, 1)


@pytest.fixture
def source(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A small kernel, and an empty cache."""
    monkeypatch.setenv("VIDEOMAMBAPRO_CACHE", str(tmp_path / "cache"))
    path = tmp_path / "twice.cu"
    path.write_text(KERNEL)
    return str(path)


def test_machine_code_is_cached_by_source_macros_and_architecture(source: str) -> None:
    first = build_cubin(source, {"TYPE": "bf16"}, "sm_90")
    written = first.stat().st_mtime_ns
    assert build_cubin(source, {"TYPE": "bf16"}, "sm_90") == first
    assert first.stat().st_mtime_ns == written
    assert first.read_bytes()[:4] == b"\x7fELF"
    others = {
        build_cubin(source, {"TYPE": "f16"}, "sm_90"),
        build_cubin(source, {"TYPE": "bf16"}, "sm_80"),
    }
    Path(source).write_text(Path(source).read_text().replace("2.f", "3.f"))
    others.add(build_cubin(source, {"TYPE": "bf16"}, "sm_90"))
    assert len(others | {first}) == 4


def test_registers_and_spills_are_known(source: str) -> None:
    (twice,) = resources(build_cubin(source, {"TYPE": "float"}, "sm_90"))
    assert twice.kernel == "twice"
    assert 4 <= twice.registers <= 64
    assert (twice.stack, twice.spill_stores, twice.spill_loads) == (0, 0, 0)


def test_several_processes_compile_once(source: str, tmp_path: Path) -> None:
    code = (
        "from model.scan.cuda.compile import build_cubin\n"
        f"print(build_cubin({source!r}, {{'TYPE': 'bf16'}}, 'sm_90'))"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=Path(__file__).parents[3],
            env=os.environ,
            stdout=subprocess.PIPE,
            text=True,
        )
        for _ in range(2)
    ]
    paths = {process.communicate()[0].strip() for process in processes}
    assert [process.returncode for process in processes] == [0, 0]
    assert [str(path) for path in (tmp_path / "cache").glob("*.cubin")] == list(paths)
    assert not list((tmp_path / "cache").glob("*.tmp"))
    assert not list((tmp_path / "cache").glob("*.lock"))


def test_an_error_in_a_kernel_is_one_line(source: str, tmp_path: Path) -> None:
    with pytest.raises(
        BuildError, match=r"NVRTC failed on .*twice.cu for sm_90: .*error.*"
    ) as info:
        build_cubin(source, {"TYPE": "no_such_type"}, "sm_90")
    assert "\n" not in str(info.value)
    assert not list((tmp_path / "cache").glob("*.cubin"))


def test_without_cuda_core_the_reason_is_said(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.core", None)
    cuda_compile._nvrtc_version.cache_clear()
    assert "cuda-core or NVRTC is missing" in (cuda_compile.why_unavailable() or "")
    with pytest.raises(BuildError, match=r"pip install 'videomambapro\[gpu\]'"):
        build_cubin(source, {"TYPE": "bf16"}, "sm_90")
    monkeypatch.undo()
    cuda_compile._nvrtc_version.cache_clear()
    assert cuda_compile.why_unavailable() is None


def test_a_named_architecture_compiles_whatever_gpu_is_here(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(ahead, "architecture", lambda index: "sm_75")
    monkeypatch.setattr(ahead, "_units", lambda shared: [("norm.cu", SMALL_NORM)])
    assert ahead.main(["sm_90"]) == 0
    assert "norm_forward" in capsys.readouterr().out
    assert ahead.main([]) == 2
    assert "sm_75: no architecture" in capsys.readouterr().out
