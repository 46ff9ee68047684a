"""Depthwise causal convolution + bias + SiLU, the local mixing in front of the scan."""

from torch import Tensor
from torch.nn import functional as F

from model.scan.problem import ScanError


def causal_conv1d_silu(
    x: Tensor, weight: Tensor, bias: Tensor | None, reverse: bool = False, backend: str = "auto"
) -> Tensor:
    """SiLU(conv(x) + bias) where a token sees itself and the K - 1 tokens before it.

    Args:
        x: (B, D, L). weight: (D, K) or (D, 1, K). bias: (D,) or None.
        reverse: anti-causal: what flipping the tokens, convolving and flipping back gives.

    Returns:
        (B, D, L) in the dtype of x.
    """
    channels = x.shape[1]
    if weight.shape[0] != channels or weight.numel() != channels * weight.shape[-1]:
        raise ScanError(
            f"conv: weight is {tuple(weight.shape)}; x {tuple(x.shape)} asks for ({channels}, K)"
        )
    kernel = weight.reshape(channels, 1, -1)
    padding = kernel.shape[-1] - 1
    if reverse:
        padded, kernel = F.pad(x, (0, padding)), kernel.flip(-1)
    else:
        padded = F.pad(x, (padding, 0))
    return F.silu(F.conv1d(padded, kernel, bias, groups=channels))
