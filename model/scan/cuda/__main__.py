"""Compiles the CUDA kernels ahead of time: `python -m model.scan.cuda [sm_90 ...]`.

Without a name it compiles for the GPUs of this machine, or, where there is none, for all
architectures that continuous integration compiles for. It needs no GPU. It compiles what training
runs use: bf16, fp16 and fp32 activations with 16 states, 4 taps and the widths of Ti, S and M.
Other variants are compiled on first use. It prints the registers and spills of each kernel. The
exit status is 1 when something does not compile.
"""

import sys
from collections.abc import Iterator

import torch

from model.errors import ModelError
from model.scan.cuda import norm
from model.scan.cuda.compile import ARCHITECTURES, Macros, build_cubin, resources
from model.scan.cuda.elements import TYPES
from model.scan.cuda.launch import architecture
from model.scan.cuda.plan import macros, variants

EMBEDDINGS = (192, 384, 576)  # of Ti, S and M


def _units(shared: int) -> Iterator[tuple[str, Macros]]:
    for dtype, name in TYPES.items():
        for size, warps in variants():
            if size == 16:
                yield "scan.cu", macros(dtype, size, warps, shared)
        width = 2 if dtype == torch.float32 else 4
        yield "conv.cu", {"TYPE": name, "PARAMETER": "float", "WIDTH": width, "TAPS": 4}
        for columns in EMBEDDINGS:
            yield "norm.cu", norm.macros(dtype, torch.float32, columns, 4)


def main(named: list[str]) -> int:
    """Compile for the architectures ``named``; see the module."""
    here = [architecture(i) for i in range(torch.cuda.device_count())]
    chosen = dict.fromkeys(named or here or ARCHITECTURES)
    wrong = [name for name in chosen if name not in ARCHITECTURES]
    if wrong:
        print(f"{wrong[0]}: no architecture; name some of {' '.join(ARCHITECTURES)}")
        return 2
    try:
        for name in chosen:
            for source, variant in _units(ARCHITECTURES[name]):
                cubin = build_cubin(source, variant, name)
                print(name, source, *(f"{key}={value}" for key, value in variant.items()))
                for kernel in resources(cubin):
                    print(
                        f"    {kernel.kernel}: {kernel.registers} registers, "
                        f"{kernel.spill_stores} bytes spilled"
                    )
    except ModelError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
