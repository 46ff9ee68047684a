"""Class probabilities for video files that need not be sharded."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data_prep.video.read import UnreadableVideoError, read_pictures
from model import VideoMamba
from pipeline.config import RunConfig
from pipeline.data.augment import square_crops
from pipeline.data.batch import normalize
from pipeline.data.errors import DataError
from pipeline.data.sampling import eval_frames
from pipeline.inference.trained import open_trained


@dataclass(frozen=True)
class Predictor:
    """A trained model with the frame sampling and the crops of its evaluation."""

    config: RunConfig
    model: VideoMamba
    classes: tuple[str, ...]
    device: torch.device

    @classmethod
    def load(cls, checkpoint: Path | str, *, raw: bool = False) -> Predictor:
        """Load a model from a run directory, a checkpoint or a file of weights.

        With `raw`, take the last weights even if the run kept their moving average. Classes whose
        names the source does not know are called "class 0" and so on.
        Raises CheckpointError, WeightsError or ConfigError.
        """
        trained = open_trained(Path(checkpoint), raw=raw)
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        unnamed = tuple(f"class {n}" for n in range(trained.config.model.num_classes))
        classes = trained.classes or unnamed
        return cls(trained.config, trained.model.to(device).eval(), classes, device)

    @torch.no_grad()
    def __call__(self, video: Path | str) -> list[tuple[str, float]]:
        """Return (class, probability) of every class, most probable first.

        Raises DataError for an unreadable video.
        """
        config, size = self.config, self.config.model
        frames = decode_all(Path(video))
        wanted = eval_frames(
            config.data.sampling,
            len(frames),
            size.num_frames,
            config.data.stride,
            config.eval.clips,
        )
        views = [square_crops(frames[clip], size.img_size, config.eval.crops) for clip in wanted]
        clips = normalize(torch.cat(views)[None].to(self.device), config.data.mean, config.data.std)
        shares = F.softmax(self.model(clips).float(), dim=-1).mean(0).tolist()
        return sorted(zip(self.classes, shares, strict=True), key=lambda pair: -pair[1])


def decode_all(path: Path) -> NDArray[np.uint8]:
    """Decode all frames as `vmp data shard` would store them, but without its compression.

    Returns (T, H, W, 3) uint8 RGB.
    Raises DataError for a file that `vmp data shard` would leave out: one that is not a video, is
    damaged or changes its frame size.
    """
    try:
        return np.stack(list(read_pictures(str(path))))
    except UnreadableVideoError as error:
        raise DataError(f"{path}: cannot be used: {error}") from error
