"""A video without end through a forward-only model, frame by frame, in constant memory.

Legend: B videos side by side, T steps in time, d embed_dim, D inner_dim, K d_conv, N d_state.
"""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from model.backbone import VideoMamba
from model.block import Block
from model.errors import ModelError, brief
from model.mixer import MixerState

_STEPS, _PENDING, _WEIGHTS = "steps", "pending", "weights"


class Stream:
    """Pushes frames through `net` as they come and carries what the past has left behind.

    The result does not depend on how the frames are cut into pushes. On a CPU, it equals
    `net.frame_logits` of the whole video, bit for bit on the scan backends cpu and reference.
    """

    def __init__(self, net: VideoMamba, batch: int = 1) -> None:
        """Start `batch` videos that advance together. Blocks are never dropped, as in evaluation.

        Raises ModelError unless the model's direction is "forward".
        """
        if not net.is_causal:
            raise ModelError(
                "a stream needs a model that was trained with model.direction=forward; this one "
                "looks at later frames too: use windows of a video (vmp predict --window)"
            )
        self.net = net
        self.batch = batch
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a video."""
        size, like = self.net.config.img_size, self.net.cls_token
        self._steps = 0
        self._pending = like.new_empty(self.batch, 3, 0, size, size, requires_grad=False)
        self._states: list[MixerState | None] = [None] * len(self.net.layers)

    @property
    def steps(self) -> int:
        """Steps in time since the start: how many logits each video has got."""
        return self._steps

    @torch.no_grad()
    def push(self, frames: Tensor) -> Tensor:
        """Logits after every step in time that the frames complete.

        frames: (B, 3, n, img_size, img_size) normalised, n of any size. Frames that do not fill a
            tubelet wait for the next push.
        Returns (B, T, num_classes), where T may be 0. Raises ModelError for another shape.
        """
        self.check(frames)
        tubelet = self.net.config.tubelet_size
        frames = torch.cat([self._pending, frames.to(self._pending)], dim=2)
        whole = frames.shape[2] - frames.shape[2] % tubelet
        logits = [
            self._step(frames[:, :, start : start + tubelet]) for start in range(0, whole, tubelet)
        ]
        self._pending = frames[:, :, whole:].clone()  # a view would keep the pushed frames alive
        if not logits:
            return frames.new_empty(self.batch, 0, self.net.config.num_classes)
        return torch.cat(logits, dim=1)

    def check(self, frames: Tensor) -> None:
        """Raise ModelError unless `push` takes frames of this shape."""
        size, given = self.net.config.img_size, tuple(frames.shape)
        if len(given) != 5 or given[:2] + given[3:] != (self.batch, 3, size, size):
            raise ModelError(
                f"frames have shape {given}, the stream takes "
                f"({self.batch}, 3, any number, {size}, {size})"
            )

    def _step(self, frames: Tensor) -> Tensor:
        """(B, 3, tubelet_size, img_size, img_size) -> (B, 1, num_classes)."""
        branch, residual = self.net.embed_steps(frames, self._steps), None
        for index, block in enumerate(self.net.layers):
            assert isinstance(block, Block)
            branch, residual, self._states[index] = block.advance(
                branch, residual, self._states[index]
            )
        assert residual is not None  # depth >= 1
        self._steps += 1
        return self.net.read_out(branch, residual)

    def nbytes(self) -> int:
        """Bytes of what is carried; the same after every whole step."""
        return sum(tensor.nbytes for tensor in self.state_dict().values())

    def state_dict(self) -> dict[str, Tensor]:
        """What a process needs that goes on with the video later: tensors, to be saved as such.

        "steps" and "pending" are the position and the frames that wait for a tubelet; "i.inputs"
        (B, K - 1, D) and "i.scan" (B, D, N) are of layer i and absent before the first step.
        """
        state = {
            _STEPS: torch.tensor(self._steps),
            _PENDING: self._pending,
            _WEIGHTS: self._weights(),
        }
        for index, layer in enumerate(self._states):
            if layer is not None:
                state |= {f"{index}.inputs": layer.inputs, f"{index}.scan": layer.scan}
        return {name: tensor.clone() for name, tensor in state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on where another stream of the same model was.

        Raises ModelError, and leaves this stream as it was, when the state is not of this model,
        its weights or this number of videos.
        """
        steps = state.get(_STEPS)
        if steps is None or steps.dtype != torch.int64 or steps.ndim or int(steps) < 0:
            raise ModelError("stream state: 'steps' is missing or not a 0-dim int64 count")
        if not torch.equal(state.get(_WEIGHTS, torch.empty(0)).cpu(), self._weights()):
            raise ModelError("stream state: it is of a model with other weights")
        shapes = self._shapes(state.get(_PENDING), started=int(steps) > 0)
        for name in sorted(state.keys() | shapes.keys()):
            if name not in shapes or name not in state:
                what = "is missing" if name in shapes else "is not part of it"
                raise ModelError(f"stream state: {brief(name)} {what}")
            if tuple(state[name].shape) != shapes[name]:
                raise ModelError(
                    f"stream state: {brief(name)} is {tuple(state[name].shape)}; this stream "
                    f"({self.batch} videos at a time) has {shapes[name]}"
                )
        device = self._pending.device
        copies = {name: tensor.to(device, copy=True) for name, tensor in state.items()}
        self._steps, self._pending = int(steps), copies[_PENDING]
        self._states = [
            MixerState(copies[f"{i}.inputs"], copies[f"{i}.scan"]) if self._steps else None
            for i in range(len(self._states))
        ]

    def _shapes(self, pending: Tensor | None, *, started: bool) -> dict[str, tuple[int, ...]]:
        """Shapes of a state; fewer frames than a tubelet may wait, as many as `pending` has."""
        config, batch = self.net.config, self.batch
        size, inner = config.img_size, config.inner_dim
        waiting = 0 if pending is None or pending.ndim != 5 else pending.shape[2]
        shapes: dict[str, tuple[int, ...]] = {
            _STEPS: (),
            _WEIGHTS: (hashlib.sha256().digest_size,),
            _PENDING: (batch, 3, min(waiting, config.tubelet_size - 1), size, size),
        }
        for index in range(config.depth if started else 0):
            shapes[f"{index}.inputs"] = (batch, config.d_conv - 1, inner)
            shapes[f"{index}.scan"] = (batch, inner, config.d_state)
        return shapes

    def _weights(self) -> Tensor:
        """(32,) uint8, the SHA-256 of the biases, norms and skips: training changes all of them."""
        digest = hashlib.sha256()
        for name, parameter in self.net.named_parameters():
            if parameter.ndim == 1:
                values = parameter.detach().cpu().contiguous().numpy()
                digest.update(name.encode() + values.tobytes())
        return torch.frombuffer(bytearray(digest.digest()), dtype=torch.uint8)
