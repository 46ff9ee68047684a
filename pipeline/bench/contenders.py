"""The contenders of `vmp bench step`, and the reasons for which some are left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple, Protocol, cast

import torch
from torch import Tensor, nn

from model import VideoMamba
from model.config import ModelConfig
from model.mixer import Mixer
from model.scan import available_backends, mamba
from pipeline.config import RunConfig
from pipeline.errors import ConfigError
from pipeline.training.assemble import build_engine, build_optimizer, initial_model
from pipeline.training.distributed import World
from pipeline.training.precision import AUTOCAST, allow_tf32, resolve_precision

PLAIN_TORCH, MAMBA_BLOCK = "plain-torch", "mamba-block"
_LONGEST_LOOP = 2_000  # tokens x blocks, above which the reference's loop takes minutes


class Stepper(Protocol):
    """The interface of an engine that a measured step uses."""

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor: ...

    def backward(self, loss: Tensor) -> None: ...

    def squared_grad_norm(self) -> Tensor: ...

    def step(self, lr: float, grad_norm: float) -> None: ...


class LeftOut(NamedTuple):
    """A contender that is not measured."""

    key: str
    reason: str


@dataclass(frozen=True)
class Candidate:
    """A way to compute the step."""

    key: str
    """Name in `--contenders`."""
    backend: str
    """Backend of the scan; the recipe's for the mamba-ssm block, which has a scan of its own."""
    zero_stage: int | None
    """ZeRO stage; None = plain torch without an engine."""
    reason: str | None = None
    """Why the candidate cannot take part; None if it can."""
    same_loss: bool = True
    """Whether the candidate computes the same function as the recipe's own step."""

    @property
    def name(self) -> str:
        """Name in the tables."""
        if self.key == MAMBA_BLOCK:
            return "mamba-ssm block, both ways, plain torch"
        how = "plain torch" if self.zero_stage is None else f"ZeRO {self.zero_stage}"
        return f"{self.backend} scan, {how}"


def choose(
    config: RunConfig, device: torch.device, ranks: int, asked: Sequence[str] = ()
) -> tuple[list[Candidate], list[LeftOut]]:
    """Return the candidates that take part, the recipe's own step first, and those left out.

    Args:
        asked: keys of the wanted candidates, besides the recipe's own step; () = all.
    Raises ConfigError for an unknown key.
    """
    candidates = list(_candidates(config, device, ranks))
    own, *others = candidates
    unknown = [key for key in asked if key not in {c.key for c in candidates}]
    if unknown:
        keys = ", ".join(dict.fromkeys(c.key for c in candidates))
        raise ConfigError(f"--contenders {unknown[0]}: unknown; one of {keys}")
    if asked:
        others = [c for c in others if c.key in asked]
        # A slow candidate takes part when it is asked for by name.
        others = [replace(c, reason=None) if c.reason == _SLOW else c for c in others]
    taking_part = [own, *(c for c in others if c.reason is None)]
    return taking_part, [LeftOut(c.key, c.reason) for c in others if c.reason is not None]


_SLOW = "a loop over tokens takes minutes at this size; ask for it with --contenders reference"


def _candidates(config: RunConfig, device: torch.device, ranks: int) -> list[Candidate]:
    model, stage = config.model, config.engine.zero_stage
    ready = list(available_backends(device))
    own = ready[0] if model.scan_backend == "auto" else model.scan_backend
    is_slow = model.num_tokens * model.depth > _LONGEST_LOOP
    found = [Candidate(own, own, stage)]
    for backend in ready:
        if backend != own:
            slow = is_slow and backend == "reference"
            found.append(Candidate(backend, backend, stage, _SLOW if slow else None))
    other_stage = 0 if stage else 1
    found.append(Candidate(f"zero{other_stage}", own, other_stage))
    alone = "it has no ranks: start one process" if ranks > 1 else None
    found.append(Candidate(PLAIN_TORCH, own, None, alone))
    why_not = alone or why_no_mamba_block(device)
    found.append(Candidate(MAMBA_BLOCK, own, None, why_not, same_loss=False))
    return found


def why_no_mamba_block(device: torch.device) -> str | None:
    """Return why the stock block of mamba-ssm cannot be used here; None when it loads."""
    if device.type != "cuda":
        return "mamba-ssm computes on a CUDA device only"
    reason = mamba.why_unavailable(mamba.stock_block)
    return f"mamba-ssm does not load: {reason}" if reason else None


class BothWays(nn.Module):
    """mamba-ssm's block over the sequence and over its reverse, as Vim and VideoMamba use it."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.mamba = mamba.stock_block()(
            config.embed_dim, d_state=config.d_state, d_conv=config.d_conv, expand=config.expand
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, L, d) -> (B, L, d)."""
        forward: Tensor = self.mamba(tokens)
        backward: Tensor = self.mamba(tokens.flip(1)).flip(1)
        return forward + backward


class PlainTorch:
    """The peer of this project's engine: the same step on one device with torch alone."""

    def __init__(self, config: RunConfig, model: VideoMamba, world: World, accumulation: int):
        allow_tf32(config.engine.tf32, world.device)
        self.model = model.to(world.device)
        self.optimizer = build_optimizer(config, model, world.device)
        self.clip_grad = config.optim.clip_grad
        self.accumulation = accumulation
        precision = resolve_precision(config.engine.precision, world.device)
        dtype = AUTOCAST.get(precision)
        self._autocast = torch.autocast(world.device.type, dtype, enabled=dtype is not None)

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        with self._autocast:
            logits: Tensor = self.model(*args, **kwargs)
        return logits

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]

    def squared_grad_norm(self) -> Tensor:
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        return nn.utils.get_total_norm(gradients).square()

    def step(self, lr: float, grad_norm: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]
        if self.clip_grad is not None:
            norm = torch.full((), grad_norm, device=next(self.model.parameters()).device)
            nn.utils.clip_grads_with_norm_(self.model.parameters(), self.clip_grad, norm)
        self.optimizer.step()
        self.optimizer.zero_grad()


def build_stepper(
    candidate: Candidate, config: RunConfig, world: World, micro_batch: int, accumulation: int
) -> tuple[Stepper, nn.Module]:
    """Build the stepper of a candidate, and return it with its model. Collective with ZeRO."""
    torch.manual_seed(config.seed)
    model = initial_model(config).train()
    if candidate.key == MAMBA_BLOCK:
        for block in cast(Iterable[Any], model.layers):
            block.mixer = BothWays(config.model)
    if candidate.zero_stage is None:
        return PlainTorch(config, model, world, accumulation), model
    engine = config.engine.model_copy(update={"zero_stage": candidate.zero_stage})
    changed = config.model_copy(update={"engine": engine})
    return build_engine(changed, model, world, micro_batch, accumulation), model


def use_backend(model: nn.Module, backend: str) -> None:
    for module in model.modules():
        if isinstance(module, Mixer):
            module.config = module.config.model_copy(update={"scan_backend": backend})
