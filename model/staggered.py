"""A stream that never looks further back than its model did in training, in constant memory."""

from __future__ import annotations

import torch
from torch import Tensor

from model.backbone import VideoMamba
from model.errors import ModelError
from model.stream import Stream


class StaggeredStream:
    """Two streams that start anew in turns; the one that has seen more answers.

    A state that is carried for longer than the clips of training is one that the model has never
    seen. Here an answer rests on the last `horizon` steps at most, and on at least half as many
    once the video is that old: it equals the last of `net.frame_logits` of those steps. It costs
    twice as much as one stream.
    """

    def __init__(self, net: VideoMamba, batch: int = 1, horizon: int | None = None) -> None:
        """Start `batch` videos. `horizon` is in steps in time; the default is that of training.

        Raises ModelError unless the model's direction is "forward".
        """
        self.horizon = net.config.num_steps if horizon is None else horizon
        if self.horizon < 1:
            raise ModelError(f"a stream with a horizon of {self.horizon} steps: give 1 or more")
        self._older, self._younger = Stream(net, batch), Stream(net, batch)
        self._tubelet = net.config.tubelet_size
        self.reset()

    def reset(self) -> None:
        """Forget everything: the next frame is the first of a video."""
        self._older.reset()
        self._younger.reset()
        self._frames_of_tubelet = 0
        self._is_paired = False

    @property
    def steps(self) -> int:
        """Steps in time on which the latest answer rests."""
        return self._older.steps

    def push(self, frames: Tensor) -> Tensor:
        """Logits after every step in time that the frames complete, see `Stream.push`."""
        self._older.check(frames)
        answers = [self._push_one(frame) for frame in torch.split(frames, 1, dim=2)]
        none = frames.new_empty(self._older.batch, 0, self._older.net.config.num_classes)
        return torch.cat([none, *answers], dim=1)

    def _push_one(self, frame: Tensor) -> Tensor:
        """(B, 3, 1, img_size, img_size) -> (B, 0 or 1, num_classes)."""
        if self._frames_of_tubelet == 0:
            if self._older.steps == self.horizon:
                self._older.reset()
                self._older, self._younger = self._younger, self._older
            self._is_paired = self._older.steps >= (self.horizon + 1) // 2
        self._frames_of_tubelet = (self._frames_of_tubelet + 1) % self._tubelet
        if self._is_paired:
            self._younger.push(frame)
        return self._older.push(frame)
