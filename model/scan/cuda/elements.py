"""The kernels' names of dtypes, and how many elements may be moved at once."""

import torch
from torch import Tensor

TYPES = {torch.float32: "float", torch.bfloat16: "bf16", torch.float16: "f16"}
"""The dtypes that the kernels take, and what the kernels call them."""


def are_aligned(width: int, *tensors: Tensor) -> bool:
    """Whether rows, neighbouring along the last dimension, can be moved ``width`` elements at once.

    Pointers, all other strides and the last size must be multiples of ``width`` elements.
    """
    return all(
        tensor.data_ptr() % (width * tensor.element_size()) == 0
        and tensor.shape[-1] % width == 0
        and all(stride % width == 0 for stride in tensor.stride()[:-1])
        for tensor in tensors
    )
