"""Loops are found in what `cuobjdump` prints; what cannot be compiled is refused in one line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from pipeline.bench import toolkit
from pipeline.bench.machine_code import count_instructions, disassembled, loops
from pipeline.errors import ConfigError

DUMP = """
        Function : forward
    .headerflags    @"EF_CUDA_SM90"
        /*0000*/                   LDC R1, c[0x0][0x28] ;           /* 0x00000a00ff017b82 */
                                                                    /* 0x000fe20000000800 */
        /*0010*/                   FFMA R0, R1, R2, R3 ;            /* 0x0000000102007223 */
        /*0020*/              @!P0 MUFU.EX2 R4, R0 ;                /* 0x0000000000048308 */
        /*0030*/               @P0 BRA 0x10 ;                       /* 0xfffffffc00f40947 */
        /*0040*/                   EXIT ;                           /* 0x000000000000794d */
        /*0050*/                   BRA 0x50;                        /* 0xfffffffc00fc7947 */
        Function : backward
        /*0000*/                   EXIT ;                           /* 0x000000000000794d */
"""


def test_a_loop_is_what_a_backward_branch_encloses() -> None:
    kernels = disassembled(DUMP)
    assert list(kernels) == ["forward", "backward"]
    assert kernels["forward"][2] == (0x20, "MUFU.EX2 R4, R0")
    assert loops(kernels["forward"]) == [(0x10, 0x30)]
    assert loops(kernels["backward"]) == []


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("sm_1", 16, 3), "--architecture sm_1: unknown; one of sm_80, "),
        (("sm_90", 16, 99), "--states 16 --warps 99: there is no such kernel; .* one of 8 and "),
        (("sm_90", 5000, 3), "--states 5000 --warps 3: there is no such kernel; "),
    ],
)
def test_what_there_is_no_kernel_for(arguments: tuple[str, int, int], line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        list(count_instructions(*arguments))


def test_without_a_toolkit_it_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toolkit.shutil, "which", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="cuobjdump is not in PATH: it comes with the CUDA toolk"):
        list(count_instructions("sm_90", 16, 3))


def test_a_program_is_found_in_the_package_of_triton(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    programs = tmp_path / "triton/backends/nvidia/bin"
    programs.mkdir(parents=True)
    (tmp_path / "triton/__init__.py").touch()
    (programs / "a-program-of-triton").touch(mode=0o755)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "triton", raising=False)
    assert toolkit.find_program("a-program-of-triton") == str(programs / "a-program-of-triton")
    assert toolkit.find_program("no-such-program") is None
