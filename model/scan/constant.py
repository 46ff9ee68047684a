"""Functions whose result torch.compile may take for a constant."""

from collections.abc import Callable
from typing import TypeVar

Function = TypeVar("Function", bound=Callable[..., object])


def constant_under_compile(function: Function) -> Function:
    """Mark ``function`` as ``torch.compiler.assume_constant_result`` does, without torch._dynamo.

    Importing torch._dynamo takes as long as importing torch, in every process, whether the process
    compiles or not.
    """
    function.__dict__["_dynamo_marked_constant"] = True
    return function
