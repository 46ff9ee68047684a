"""The scan compiles for every GPU without having one, and fits in its registers."""

import pytest
import torch

from model.scan.cuda.compile import ARCHITECTURES, build_cubin, resources
from model.scan.cuda.plan import macros, variants

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
CASES = [
    *(("sm_90", bf16, size, warps) for size, warps in variants()),
    *(("sm_90", dtype, 16, warps) for dtype in (f16, f32) for warps in (3, 4)),
    *((name, dtype, 16, 3) for name in ARCHITECTURES for dtype in (bf16, f32) if name != "sm_90"),
    *((name, bf16, 16, warps) for name in ARCHITECTURES for warps in (1, 4) if name != "sm_90"),
]


@pytest.mark.parametrize(("architecture", "dtype", "size", "warps"), CASES)
def test_it_compiles_and_does_not_spill(
    architecture: str, dtype: torch.dtype, size: int, warps: int
) -> None:
    chosen = macros(dtype, size, warps, ARCHITECTURES[architecture])
    cubin = build_cubin("scan.cu", chosen, architecture)
    kernels = {kernel.kernel: kernel for kernel in resources(cubin)}
    print(architecture, dtype, size, warps, *kernels.values(), sep="\n  ")
    assert set(kernels) == {
        *("scan_forward", "scan_backward", "scan_ends", "scan_adjoint_ends", "scan_reduce")
    }
    spilled = {name: k.spill_stores for name, k in kernels.items() if k.spill_stores}
    assert spilled == {}
