"""Ways to keep slow imports that training does not need out of a rank's start-up.

`tests/pipeline/training/test_startup.py` checks which modules a rank has loaded after a step.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch._library import custom_ops
from torch.optim import Optimizer


def do_without_compiler() -> None:
    """Let a process that never calls torch.compile run without torch._dynamo.

    Torch hides the methods of optimizers and the kernels of custom operators from its compiler with
    a wrapper that imports torch._dynamo at its first call. Where nothing is compiled the wrapper
    has no use, so this function sets the attribute by which the wrapper knows that its work is
    done. Call it after the operators are defined and before an optimizer is created.
    """
    hidden: list[Callable[..., Any]] = [
        Optimizer.add_param_group,
        Optimizer.zero_grad,
        Optimizer.state_dict,
        Optimizer.load_state_dict,
    ]
    for definition in custom_ops.OPDEFS.values():
        hidden += definition._backend_fns.values()
    for wrapper in hidden:
        function = getattr(wrapper, "__wrapped__", None)
        if function is not None and not hasattr(function, "__dynamo_disable"):
            setattr(function, "__dynamo_disable", function)


def step_without_compiler(optimizer: Optimizer) -> None:
    """Let `optimizer.step` run without torch._dynamo, which its wrapper imports.

    The wrapper also calls the hooks on the step; this project registers none.
    """
    step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    optimizer.step = functools.partial(step, optimizer)  # type: ignore[method-assign]


@contextmanager
def absent(module: str) -> Iterator[None]:
    """Make imports of `module` fail inside the block, unless it has been imported already."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
