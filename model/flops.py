"""What a model costs, from its configuration alone: parameters, FLOPs, activation bytes.

Imports no torch. Legend: L tokens, d embed_dim, D inner_dim, N d_state, R dt_rank, K d_conv.
"""

from __future__ import annotations

from model.config import ModelConfig

# One update and read-out of one state: exp(delta A), delta u B, h = a h + b, sum of C h.
# Counted as 9 since https://github.com/state-spaces/mamba/issues/110.
SCAN_FLOPS_PER_STATE = 9
# Tokens between two states that the CUDA scan keeps for its backward pass. The other backends keep
# a state less often.
SCAN_CHUNK = 16
_FP32 = 4


def count_parameters(config: ModelConfig) -> int:
    """Trainable parameters, to the unit."""
    d, D, N = config.embed_dim, config.inner_dim, config.d_state
    own = _directions_of_weights(config)
    decays = _directions(config) * D * N
    block = d + 2 * D * d + decays + D * d + own * (_projection_weights(config) + 3 * D)
    positions = 1 + (config.patches_per_frame + 1) + config.num_steps
    patch = _pixels_per_patch(config) * d + d
    head = config.num_classes * (d + 1)
    return patch + positions * d + config.depth * block + d + head


def published_flops(config: ModelConfig) -> int:
    """Multiply-adds of one view in the convention of the published tables.

    It fits all of them (M: 102 / 203 / 406 / 813 G for 8 / 16 / 32 / 64 frames): a multiply-add
    counts once; of the mixer, the input and output projections count and, of the scan, one
    read-out and skip (N + 1 per channel and token). What runs inside the fused kernel of the
    original code (convolution, x_proj, dt_proj, the recurrence itself) was not seen by the
    authors' counter. Use it only to compare with papers; `forward_flops` counts the arithmetic
    done.
    """
    D, N = config.inner_dim, config.d_state
    per_token = 3 * D * config.embed_dim + D * (N + 1)
    return config.depth * config.num_tokens * per_token + _ends(config)


def forward_flops(config: ModelConfig) -> int:
    """Floating-point operations of one clip's forward pass; a multiply-add counts as two.

    All projections, both convolutions where there are two, and the scan in every direction.
    """
    d, D, N = config.embed_dim, config.inner_dim, config.d_state
    own = _directions_of_weights(config)
    products = 3 * D * d + own * _projection_weights(config)
    scan_and_skip = _directions(config) * (SCAN_FLOPS_PER_STATE * N + 2) * D + D
    per_token = 2 * products + scan_and_skip
    return config.depth * config.num_tokens * per_token + 2 * _ends(config)


def training_flops(config: ModelConfig) -> int:
    """Floating-point operations of one clip's forward and backward pass, for MFU.

    Backward counts twice the forward; recomputation (activation checkpointing, and the scan's
    own) is overhead, not model work, and is left out.
    """
    return 3 * forward_flops(config)


def activation_bytes(
    config: ModelConfig, compute_bytes: int = 2, scan_chunk: int = SCAN_CHUNK
) -> int:
    """Bytes kept for backward per clip in training, with the fused kernels of a GPU.

    compute_bytes: 2 under bfloat16 autocast, 4 in float32. scan_chunk: tokens between kept states.
    Includes the one block that is recomputed under activation checkpointing; excludes parameters
    and kernel workspaces.
    """
    tokens, d = config.num_tokens, config.embed_dim
    block = _block_bytes(config, compute_bytes, scan_chunk)
    recomputed = sum(config.recomputes(index) for index in range(config.depth))
    # A recomputed block keeps its two inputs: the branch, and the fp32 residual stream.
    inputs = tokens * d * (compute_bytes + _FP32)
    working = block if recomputed else 0
    patches = _num_patches(config) * _pixels_per_patch(config) * compute_bytes
    return patches + (config.depth - recomputed) * block + recomputed * inputs + working


def _block_bytes(config: ModelConfig, compute_bytes: int, scan_chunk: int) -> int:
    d, D, N = config.embed_dim, config.inner_dim, config.d_state
    own = _directions_of_weights(config)
    stream = _FP32 * (d + 1)  # the residual and the norm's scale
    in_proj = compute_bytes * (d + 2 * D)  # its input, and x and z
    per_direction = compute_bytes * (D + config.dt_rank + 2 * N + D)  # conv, x_proj, delta
    out = compute_bytes * D + _FP32 * D  # gated sum, and the sum before the gate
    states = _FP32 * _directions(config) * D * N / scan_chunk
    per_token = stream + in_proj + own * per_direction + out + states
    return int(config.num_tokens * per_token)


def _directions(config: ModelConfig) -> int:
    return 1 if config.direction == "forward" else 2


def _num_patches(config: ModelConfig) -> int:
    """Patches of a clip."""
    return config.num_steps * config.patches_per_frame


def _directions_of_weights(config: ModelConfig) -> int:
    return 2 if config.layout == "separate" else 1


def _projection_weights(config: ModelConfig) -> int:
    """Weights of one direction's conv1d, x_proj and dt_proj, biases and D left out."""
    D, R = config.inner_dim, config.dt_rank
    return D * config.d_conv + D * (R + 2 * config.d_state) + R * D


def _pixels_per_patch(config: ModelConfig) -> int:
    return 3 * config.tubelet_size * config.patch_size**2


def _ends(config: ModelConfig) -> int:
    """Multiply-adds of the patch embedding and the head."""
    patches = _num_patches(config) * _pixels_per_patch(config) * config.embed_dim
    return patches + config.embed_dim * config.num_classes
