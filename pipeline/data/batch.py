"""The batch that a loader gives to the training loop."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """B samples in V views each. Clips are uint8, which moves a quarter of the bytes of fp32."""

    clips: Tensor
    """(B, V, 3, T, H, W) uint8."""
    label: Tensor
    """(B,) int64 class numbers."""
    weight: Tensor
    """(B,) float32: 1, or 0 for padding and for unreadable samples."""
    epoch: Tensor
    """(B,) int64."""
    position: Tensor
    """(B,) int64: samples that the run consumed before this one; in evaluation, sample numbers."""
    keys: list[str]
    """B sample keys; the key of padding is empty."""
    bad: list[tuple[str, str]]
    """(key, reason) of every unreadable sample in the batch."""


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy to the device without waiting; from unpinned memory, CUDA would wait for the stream."""
    if device.type == "cuda" and not tensor.is_cuda:
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def normalize(
    clips: Tensor,
    mean: tuple[float, float, float],
    std: tuple[float, float, float],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Standardise uint8 (B, V, 3, T, H, W) to (B * V, 3, T, H, W) of `dtype`, on clips' device."""
    scale = to_device(torch.tensor([1 / (255 * s) for s in std]), clips.device).view(3, 1, 1, 1)
    shift = to_device(torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]), clips.device)
    return torch.addcmul(shift.view(3, 1, 1, 1), clips.flatten(0, 1).float(), scale).to(dtype)
