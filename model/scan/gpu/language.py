"""The one module that imports Triton, and what all kernels share."""

# Kernel arguments are typed when a kernel is launched, not by annotations.
# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

import triton
import triton.language as tl

__all__ = ["next_power_of_2", "silu_slope", "tl", "triton"]

next_power_of_2 = triton.next_power_of_2


@triton.jit
def silu_slope(x):
    """Derivative of x * sigmoid(x)."""
    gate = tl.sigmoid(x)
    return gate * (1 + x * (1 - gate))
