"""Running kernels without PyTorch's dispatcher, which takes longer on the host than their launch.

An operator of ours has two entrances: a registered operator for whatever traces or counts
operators, and an ``autograd.Function`` for plain eager code. Both run the same functions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.utils._python_dispatch import is_in_torch_dispatch_mode


def is_watched() -> bool:
    """Whether something looks at operators: a tracer, a dispatch mode or a transform."""
    return (
        torch.compiler.is_compiling()
        or is_in_torch_dispatch_mode()
        or torch._C._are_functorch_transforms_active()
    )


def eager_entrance(
    forward: Callable[..., Any],
    setup_context: Callable[[Any, tuple[Any, ...], Any], None],
    gradients: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., Any]:
    """The entrance for eager code to an operator that is registered with the same functions.

    ``gradients`` takes the context and the gradients of the outputs.
    """

    class Entrance(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *inputs: Any) -> Any:
            output = forward(*inputs)
            setup_context(ctx, inputs, output)
            return output

        @staticmethod
        @once_differentiable
        def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
            return gradients(ctx, *grads)

    apply: Callable[..., Any] = Entrance.apply
    return apply


@contextmanager
def as_given(like: Tensor) -> Iterator[None]:
    """Switch autocast off and make the device of ``like`` current.

    Tensors keep the dtype they arrive in, because A, D, the bias and the state must stay float32
    whatever the inputs are. Kernels are launched on the current device.
    """
    device = like.device.type
    is_on = torch.is_autocast_enabled(device)
    if is_on:  # torch.autocast does the same, and takes longer than a kernel
        torch.set_autocast_enabled(device, False)
    try:
        with torch.cuda.device_of(like):
            yield
    finally:
        if is_on:
            torch.set_autocast_enabled(device, True)
