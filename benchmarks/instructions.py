"""Counts instructions by kind in the loops of the scan's machine code, from `cuobjdump`.

    python benchmarks/instructions.py [sm_90] [STATES] [WARPS]

Needs no GPU, but `cuobjdump` of a CUDA toolkit in PATH. Loops of tokens are the innermost ones; the
kernels' files say how many tokens one turn takes.
"""

import collections
import re
import shutil
import subprocess
import sys
from pathlib import Path

import torch

from model.scan.cuda.compile import ARCHITECTURES, build_cubin
from model.scan.cuda.plan import macros

Instruction = tuple[int, str]


def disassemble(cubin: Path) -> dict[str, list[Instruction]]:
    """Address and text of every instruction, by kernel."""
    command = ["cuobjdump", "-sass", str(cubin)]
    text = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    kernels: dict[str, list[Instruction]] = {}
    for line in text.splitlines():
        if function := re.match(r"\s*Function : (\w+)", line):
            kernels[function[1]] = current = []
        elif code := re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(.*?);", line):
            current.append((int(code[1], 16), re.sub(r"^@!?U?P\w+\s+", "", code[2].strip())))
    return kernels


def loops(code: list[Instruction]) -> list[tuple[int, int]]:
    """First and last address of what backward branches enclose."""
    found = set()
    for address, text in code:
        target = re.match(r"BRA\b.*?(0x[0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            found.add((int(target[1], 16), address))
    return sorted(found)


def main() -> int:
    architecture, size, warps = [*sys.argv[1:], *("sm_90", "16", "3")[len(sys.argv) - 1 :]]
    if shutil.which("cuobjdump") is None:
        print("cuobjdump is not in PATH: it comes with the CUDA toolkit")
        return 2
    chosen = macros(torch.bfloat16, int(size), int(warps), ARCHITECTURES[architecture])
    for name, code in disassemble(build_cubin("scan.cu", chosen, architecture)).items():
        print(f"{name}: {len(code)} instructions")
        for first, last in loops(code):
            body = [text.split()[0].split(".")[0] for at, text in code if first <= at <= last]
            kinds = collections.Counter(body).most_common(8)
            print(f"  loop of {len(body)}:", *(f"{kind} {count}" for kind, count in kinds))
    return 0


if __name__ == "__main__":
    sys.exit(main())
