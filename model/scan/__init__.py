"""The selective scan of VideoMambaPro and the small fused operators around it."""

from model.scan.conv import causal_conv1d_silu
from model.scan.dispatch import available_backends, bidirectional_scan, selective_scan
from model.scan.norm import rms_norm_residual
from model.scan.problem import ScanError

__all__ = [
    "ScanError",
    "available_backends",
    "bidirectional_scan",
    "causal_conv1d_silu",
    "rms_norm_residual",
    "selective_scan",
]
