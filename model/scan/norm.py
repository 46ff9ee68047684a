"""Residual add + RMSNorm with a float32 residual stream."""

import torch
from torch import Tensor
from torch.nn import functional as F


def rms_norm_residual(
    x: Tensor, residual: Tensor | None, weight: Tensor, eps: float = 1e-5
) -> tuple[Tensor, Tensor]:
    """Add x to the residual stream and normalise the sum over its last dimension.

    Args:
        x: (..., D), any float dtype. residual: (..., D) or None for the first block.
        weight: (D,).

    Returns:
        The normalised sum in the dtype of x, and the sum itself in float32 (float64 stays).
    """
    dtype = torch.promote_types(x.dtype, torch.float32)
    total = x.to(dtype) if residual is None else x.to(dtype) + residual.to(dtype)
    return F.rms_norm(total, (total.shape[-1],), weight.to(dtype), eps).to(x.dtype), total
