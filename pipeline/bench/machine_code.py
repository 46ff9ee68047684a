"""The loops of the scan's machine code: how many instructions of which kind, from `cuobjdump`.

Loops of tokens are the innermost ones; the kernels' files say how many tokens one turn takes. No
GPU is needed.
"""

import collections
import re
import subprocess
from collections.abc import Iterator

import torch

from model.scan.cuda.compile import ARCHITECTURES, build_cubin
from model.scan.cuda.plan import macros, padded, variants
from pipeline.bench.toolkit import find_program
from pipeline.errors import ConfigError

Instruction = tuple[int, str]


def count_instructions(architecture: str, states: int, warps: int) -> Iterator[str]:
    """Lines to print: every kernel of the scan in bf16, and the loops in it.

    Args:
        architecture: one of ARCHITECTURES. warps: of the backward kernel.
    Raises ConfigError for what cannot be compiled, and BuildError where nothing can be.
    """
    if architecture not in ARCHITECTURES:
        raise ConfigError(
            f"--architecture {architecture}: unknown; one of {', '.join(ARCHITECTURES)}"
        )
    known = list(variants())
    if (padded(states), warps) not in known:
        pairs = ", ".join(f"{size} and {count}" for size, count in known)
        raise ConfigError(
            f"--states {states} --warps {warps}: there is no such kernel; states and warps are "
            f"one of {pairs}"
        )
    program = find_program("cuobjdump")
    if program is None:
        raise ConfigError(
            "cuobjdump is not in PATH: it comes with the CUDA toolkit and with Triton"
        )
    chosen = macros(torch.bfloat16, states, warps, ARCHITECTURES[architecture])
    cubin = build_cubin("scan.cu", chosen, architecture)
    dump = subprocess.run([program, "-sass", cubin], check=True, capture_output=True, text=True)
    for name, code in disassembled(dump.stdout).items():
        yield f"{name}: {len(code)} instructions"
        for first, last in loops(code):
            body = [text.split()[0].split(".")[0] for at, text in code if first <= at <= last]
            kinds = collections.Counter(body).most_common(8)
            yield f"  loop of {len(body)}: " + " ".join(f"{kind} {n}" for kind, n in kinds)


def disassembled(dump: str) -> dict[str, list[Instruction]]:
    """Address and text of every instruction, by kernel, as `cuobjdump -sass` prints them."""
    kernels: dict[str, list[Instruction]] = {}
    current: list[Instruction] = []
    for line in dump.splitlines():
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
