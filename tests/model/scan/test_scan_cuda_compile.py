"""The scan compiles for every GPU without having one, and fits in its registers."""

import pytest
import torch

from model.scan.cuda.compile import ARCHITECTURES, build_cubin, resources
from model.scan.cuda.plan import macros, variants

bf16, f16, f32 = torch.bfloat16, torch.float16, torch.float32
OTHERS = [name for name in ARCHITECTURES if name != "sm_90"]
# (architecture, dtype of the activations, states, warps, channels that a lane moves at once)
CASES = [
    *(("sm_90", bf16, size, warps, 2) for size, warps in variants()),
    *(("sm_90", dtype, 16, warps, 2) for dtype in (f16, f32) for warps in (3, 4)),
    *(
        (name, dtype, 16, 3, 2)
        for name in ARCHITECTURES
        for dtype in (bf16, f32)
        if name != "sm_90"
    ),
    *((name, bf16, 16, warps, 2) for name in ARCHITECTURES for warps in (1, 4) if name != "sm_90"),
    *(("sm_90", dtype, 16, 3, 1) for dtype in (bf16, f32)),
    *((name, bf16, 16, 3, 1) for name in ("sm_80", "sm_120")),
]


@pytest.mark.parametrize(("architecture", "dtype", "size", "warps", "width"), CASES)
def test_it_compiles_and_does_not_spill(
    architecture: str, dtype: torch.dtype, size: int, warps: int, width: int
) -> None:
    chosen = macros(dtype, size, warps, ARCHITECTURES[architecture], width=width)
    cubin = build_cubin("scan.cu", chosen, architecture)
    kernels = {kernel.kernel: kernel for kernel in resources(cubin)}
    print(architecture, dtype, size, warps, width, *kernels.values(), sep="\n  ")
    assert set(kernels) == {
        *("scan_forward", "scan_backward", "scan_ends", "scan_adjoint_ends", "scan_reduce")
    }
    spilled = {name: k.spill_stores for name, k in kernels.items() if k.spill_stores}
    assert spilled == {}
