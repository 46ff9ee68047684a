"""Teachers that compute: a model of this project, or a TorchScript file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model import ModelConfig, VideoMamba
from model.containers import read_container
from model.convert import fit_model, infer_config
from pipeline.checkpoint.layout import file_sha256
from pipeline.checkpoint.load import read_weights
from pipeline.checkpoint.source import locate
from pipeline.checkpoint.trained import checkpoint_config
from pipeline.config import RunConfig
from pipeline.data.batch import Batch
from pipeline.errors import ConfigError
from pipeline.inference.exported import card_of
from pipeline.training import distributed
from pipeline.training.precision import AUTOCAST, resolve_precision
from pipeline.training.tasks.config import TeacherConfig
from pipeline.training.tasks.teacher import Features, digest_of

Channels = tuple[float, float, float]


def is_script(path: Path) -> bool:
    return path.suffix in (".pt", ".ts")


class _Adapter:
    """Turns the student's clips into the teacher's: other size of frames, other normalisation."""

    def __init__(self, config: RunConfig, size: int, mean: Channels, std: Channels) -> None:
        data = config.data
        ratios = [ours / theirs for ours, theirs in zip(data.std, std, strict=True)]
        shifts = [(a - b) / s for a, b, s in zip(data.mean, mean, std, strict=True)]
        self._same = (mean, std) == (data.mean, data.std)
        self._scale, self._shift = (torch.tensor(v).view(3, 1, 1, 1) for v in (ratios, shifts))
        self._size = size

    def __call__(self, clips: Tensor) -> Tensor:
        """(B, 3, T, S, S) -> the same pictures, (B, 3, T, size, size)."""
        if not self._same:
            clips = torch.addcmul(self._shift.to(clips.device), clips, self._scale.to(clips.device))
        if clips.shape[-1] == self._size:
            return clips
        frames = clips.transpose(1, 2).flatten(0, 1)
        size = (self._size, self._size)
        frames = F.interpolate(frames, size, mode="bicubic", align_corners=False)
        return frames.view(len(clips), -1, 3, *size).transpose(1, 2)


class _Network:
    """What networks share: no gradient, and the number format of the run."""

    def __init__(self, config: RunConfig, device: torch.device) -> None:
        precision = resolve_precision(config.engine.precision, device)
        self._student = config.model
        self._device = device
        self._dtype = AUTOCAST.get(precision)

    def __call__(self, clips: Tensor, batch: Batch) -> Features:
        """Return the features of clips (B, 3, T, S, S). They need no gradient."""
        autocast = torch.autocast(self._device.type, self._dtype, enabled=self._dtype is not None)
        with torch.no_grad(), autocast:
            return self.look(clips)

    def look(self, clips: Tensor) -> Features:
        raise NotImplementedError


class ModelTeacher(_Network):
    """A model of this project: an image model looks at every frame by itself."""

    gives_attention = False

    def __init__(self, config: RunConfig, teacher: TeacherConfig, device: torch.device) -> None:
        super().__init__(config, device)
        loaded = _load(teacher.path, config)
        self._net = loaded.net.requires_grad_(False).eval().to(device)
        theirs, ours = loaded.net.config, config.model
        self._frame_by_frame = theirs.num_frames == 1 < ours.num_frames
        steps = ours.num_frames if self._frame_by_frame else theirs.num_steps
        _require_grid(teacher.path, (steps, theirs.patches_per_frame), ours)
        self.width = theirs.embed_dim
        if teacher.width not in (None, self.width):
            raise ConfigError(
                f"task.teacher.width={teacher.width}, but {teacher.path} has width {self.width}: "
                "leave it out"
            )
        backbone = (item for item in loaded.net.state_dict().items() if item[0][:5] != "head.")
        self.digest = digest_of(backbone)
        self._adapt = _Adapter(config, theirs.img_size, loaded.mean, loaded.std)

    def look(self, clips: Tensor) -> Features:
        clips = self._adapt(clips)
        if not self._frame_by_frame:
            return Features(self._net.tokens(clips), has_class_token=True)
        frames = clips.transpose(1, 2).flatten(0, 1).unsqueeze(2)
        tokens = self._net.tokens(frames)[:, 1:]
        return Features(tokens.reshape(len(clips), -1, self.width), has_class_token=False)


class ScriptTeacher(_Network):
    """A TorchScript module: clips -> features (B, T, P, w), alone or with attention (B, T, P)."""

    def __init__(self, config: RunConfig, teacher: TeacherConfig, device: torch.device) -> None:
        super().__init__(config, device)
        self._path = teacher.path
        if teacher.width is None:
            raise ConfigError(
                f"task.teacher.width: give the width of the features of {self._path}, which a "
                "TorchScript file does not tell"
            )
        self.width = teacher.width
        try:
            load: Callable[..., nn.Module] = torch.jit.load
            self._net = load(str(self._path), map_location=device).eval()
            self.digest = file_sha256(self._path)
        except (RuntimeError, ValueError, OSError) as error:
            raise ConfigError(
                f"task.teacher.path={self._path}: not a TorchScript file ({_brief(error)}); "
                "make one with torch.jit.trace(...).save(...)"
            ) from error
        size = teacher.img_size or config.model.img_size
        mean, std = teacher.mean or config.data.mean, teacher.std or config.data.std
        self._adapt = _Adapter(config, size, mean, std)
        self._try()

    def look(self, clips: Tensor) -> Features:
        tokens, attention = self._answer(clips)
        return Features(tokens.flatten(1, 2), has_class_token=False, attention=attention)

    def _answer(self, clips: Tensor) -> tuple[Tensor, Tensor | None]:
        answer = self._net(self._adapt(clips))
        tokens, attention = answer if isinstance(answer, tuple) else (answer, None)
        return tokens, attention

    def _try(self) -> None:
        """Raise ConfigError, on a clip of zeros, if the answer is not what a teacher must give."""
        ours = self._student
        size = (1, 3, ours.num_frames, ours.img_size, ours.img_size)
        grid = (1, ours.num_steps, ours.patches_per_frame)
        try:
            with torch.no_grad():
                tokens, attention = self._answer(torch.zeros(size, device=self._device))
            self.gives_attention = attention is not None
            found = tuple(tokens.shape), None if attention is None else tuple(attention.shape)
        except Exception as error:  # the module of a stranger can raise anything
            raise ConfigError(
                f"task.teacher.path={self._path}: fails on a clip {size} ({_brief(error)}): it "
                "must take normalised clips and return features, alone or with attention"
            ) from error
        if found[0] != (*grid, self.width) or found[1] not in (None, grid):
            raise ConfigError(
                f"task.teacher.path={self._path}: returns shapes {found}, expected features "
                f"{(*grid, self.width)}, alone or with attention {grid}, for the student's "
                f"{grid[1]} steps of {grid[2]} patches and task.teacher.width={self.width}"
            )


class _Loaded(NamedTuple):
    net: VideoMamba
    """The backbone; its head means nothing."""
    mean: Channels
    std: Channels


def _load(path: Path, config: RunConfig) -> _Loaded:
    """Load a run, a checkpoint or a weight file. Collective. Raises WeightsError and others."""
    mean, std = config.data.mean, config.data.std
    # Rank 0 chooses for all ranks, since a run may still write checkpoints.
    source = distributed.on_main(lambda: locate(path))
    if source.is_dir():
        stored = checkpoint_config(source)
        weights = read_weights(source, raw=not stored.eval.use_ema)
        found: ModelConfig | None = stored.model
        mean, std = stored.data.mean, stored.data.std
    else:
        container = read_container(source)
        weights, found = container.tensors, container.config
        if (card := card_of(container.metadata, source)) is not None:
            mean, std = card.mean, card.std
    # A teacher needs no head, which weights of masked pre-training do not have.
    if found is None:
        shape = infer_config(weights, source, num_classes=1)
    else:
        shape = found.model_copy(update={"num_classes": 1})
    shape = shape.model_copy(update={"scan_backend": config.model.scan_backend})
    net, _ = fit_model(weights, shape, source)
    return _Loaded(net, mean, std)


def _require_grid(path: Path, theirs: tuple[int, int], ours: ModelConfig) -> None:
    grid = (ours.num_steps, ours.patches_per_frame)
    if theirs != grid:
        raise ConfigError(
            f"task.teacher.path={path}: sees {theirs[0]} steps of {theirs[1]} patches, the model "
            f"{grid[0]} of {grid[1]}: choose img_size, patch_size, num_frames and tubelet_size to "
            "match, or a teacher of one frame, which looks at every frame by itself"
        )


def _brief(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1][:160] if lines else 'no reason given'}"
