"""Functions whose result torch.compile may take for a constant."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant_under_compile(function: Function) -> Function:
    """``torch.compiler.assume_constant_result``, which would import torch._dynamo.

    That takes as long as torch itself, in every process, whether it compiles or not.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function
