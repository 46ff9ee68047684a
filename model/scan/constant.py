"""A mark for functions whose result torch.compile may take for a constant."""

from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def constant(function: Callable[P, T]) -> Callable[P, T]:
    """Does what `torch.compiler.assume_constant_result` does, which imports torch._dynamo first.

    That import takes longer than all others of `model` together, and only torch.compile needs it.
    """
    function._dynamo_marked_constant = True  # type: ignore[attr-defined]
    return function
