"""What a rank can do without before its first step: two imports that take longer than the rest.

`tests/pipeline/training/test_startup.py` holds the modules that a rank has loaded after a step.
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
    a wrapper that imports torch._dynamo at its first call. Where nothing is compiled there is
    nothing to hide from, so each wrapper is told that it has done its work. Call this after the
    operators are defined and before an optimizer is made.
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
    """Let `optimizer.step` run without torch._dynamo, which it imports to end a graph before it.

    Hooks on the optimizer's step are passed over; we register none.
    """
    step = torch.no_grad()(inspect.unwrap(type(optimizer).step))
    optimizer.step = functools.partial(step, optimizer)  # type: ignore[method-assign]


@contextmanager
def absent(module: str) -> Iterator[None]:
    """Within, importing `module` raises ImportError, unless it was imported before."""
    if module in sys.modules:
        yield
        return
    sys.modules[module] = None  # type: ignore[assignment]
    try:
        yield
    finally:
        del sys.modules[module]
