"""Compiles the CUDA kernels ahead of time: `python -m model.scan.cuda [sm_90 ...]`.

For the GPUs that are here when no architecture is named, else for all that continuous integration
compiles for. It needs no GPU. What training runs use is compiled: bf16, fp16 and fp32 activations
with 16 states, 4 taps and the widths of Ti, S and M; anything else is compiled when it is first
used. Prints what each kernel takes per thread; the exit status is 1 when something does not
compile.
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
    wrong = [name for name in (*named, *here) if name not in ARCHITECTURES]
    if wrong:
        print(f"{wrong[0]}: no architecture; name some of {' '.join(ARCHITECTURES)}")
        return 2
    try:
        for name in dict.fromkeys(named or here or ARCHITECTURES):
            for source, chosen in _units(ARCHITECTURES[name]):
                cubin = build_cubin(source, chosen, name)
                print(name, source, *(f"{key}={value}" for key, value in chosen.items()))
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
