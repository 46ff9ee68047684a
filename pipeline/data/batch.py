"""What the loader hands to the training loop."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B samples in V views each; uint8 so that the queue and the bus carry a quarter of fp32."""

    clips: Tensor
    """(B, V, 3, T, H, W) uint8."""
    label: Tensor
    """(B,) int64."""
    weight: Tensor
    """(B,) float32: 1, or 0 for padding and for samples that could not be read."""
    epoch: Tensor
    """(B,) int64."""
    position: Tensor
    """(B,) int64: samples the run consumed before this one; evaluation: number of the sample."""
    keys: list[str]
    """B sample keys; empty for padding."""
    bad: list[tuple[str, str]]
    """(key, reason) of every sample here that could not be read."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A copy that the host does not wait for: from pageable memory, CUDA would empty the stream."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def normalize(
    clips: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """uint8 (B, V, 3, T, H, W) -> standardised (B * V, 3, T, H, W) of `dtype`, on clips' device."""
    scale = to_device(torch.tensor([1 / (255 * s) for s in std]), clips.device).view(3, 1, 1, 1)
    shift = to_device(torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]), clips.device)
    return torch.addcmul(shift.view(3, 1, 1, 1), clips.flatten(0, 1).float(), scale).to(dtype)
