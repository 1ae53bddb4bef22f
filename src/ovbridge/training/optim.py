"""The optimiser, and the learning rate of each step."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ovbridge.errors import ConfigError
from ovbridge.ranges import BELOW_ONE, NOT_NEGATIVE, POSITIVE, require_ranges

_TRUNK = ("backbone.", "roi_head.trunk.")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """The optimiser and its schedule. Defaults: the released runs' SGD."""

    optimizer: Literal["sgd", "adamw"] = "sgd"
    """"adamw" learns a box head from scratch in a few hundred steps, where SGD needs thousands."""
    learning_rate: float = 0.02
    """Peak learning rate; the released runs use 0.02 for 16 boxed images a step."""
    trunk_factor: float = 1.0
    """Factor on the learning rate of the backbone and of the region head's trunk: below 1, what they learnt before
    outlives the large first gradients of new heads."""
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_norms_and_biases: bool = True
    """Weight decay on one-dimensional parameters too, as Detectron2's default did in the released runs."""
    schedule: Literal["step", "cosine"] = "step"
    """"step": × `decay_factor` at each of `decay_at`. "cosine": half a cosine down to `final_fraction`."""
    decay_at: tuple[float, ...] = (2 / 3, 8 / 9)
    """Fractions of all steps at which the step schedule decays: 60k and 80k of 90k, 480k and 640k of 720k."""
    decay_factor: float = 0.1
    final_fraction: float = 0.0
    """Where the cosine ends, as a fraction of the peak."""
    warmup_steps: int = 1000
    """Linear warm-up from `warmup_factor` × the scheduled rate."""
    warmup_factor: float = 0.001
    clip_norm: float | None = None
    """Largest L2 norm of the gradient; None never clips."""
    keep_zero_gradients: bool = True
    """Fill gradients with zeros between steps instead of dropping them, so that momentum and weight decay keep moving
    parameters that a batch does not reach (torch 1.10's default, and so the released runs')."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            "optim.",
            learning_rate=POSITIVE,
            trunk_factor=NOT_NEGATIVE,
            momentum=BELOW_ONE,
            weight_decay=NOT_NEGATIVE,
            decay_factor=NOT_NEGATIVE,
            final_fraction=NOT_NEGATIVE,
            warmup_steps=NOT_NEGATIVE,
            warmup_factor=NOT_NEGATIVE,
            clip_norm=POSITIVE,
        )
        if self.optimizer == "sgd" and self.nesterov and not self.momentum:
            raise ConfigError("optim.nesterov=true looks ahead along the momentum: set optim.momentum above 0")
        if not all(0 < at < 1 for at in self.decay_at):
            raise ConfigError(f"optim.decay_at is {self.decay_at}: give fractions of the run between 0 and 1")


def learning_rate_at(step: int, total_steps: int, config: OptimConfig) -> float:
    """The learning rate of step `step` (0-based) of `total_steps`."""
    if config.schedule == "cosine":
        progress = min(step / max(total_steps, 1), 1.0)
        low = config.final_fraction
        factor = low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress))
    else:
        factor = config.decay_factor ** sum(step >= round(at * total_steps) for at in config.decay_at)
    if step < config.warmup_steps:
        done = step / config.warmup_steps
        factor *= config.warmup_factor * (1 - done) + done
    return config.learning_rate * factor


def require_learning(model: nn.Module) -> None:
    """Raise ConfigError where no parameter learns."""
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise ConfigError("every parameter of the detector is frozen: shorten stage.frozen")


def build_optimizer(model: nn.Module, config: OptimConfig) -> torch.optim.Optimizer:
    """The optimiser over the parameters of `model` that learn; raises ConfigError where none does."""
    require_learning(model)
    groups = _groups(model, config)
    if config.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True)
    optimizer = torch.optim.SGD(
        groups,
        lr=config.learning_rate,
        momentum=config.momentum,
        nesterov=config.nesterov,
        weight_decay=config.weight_decay,
        fused=True,
    )
    if config.momentum:
        # Zeros mean what an absent buffer does; the fused step refuses some present and some absent, as after a first
        # batch that does not reach every head.
        for parameter in (member for group in groups for member in group["params"]):
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return optimizer


def _groups(model: nn.Module, config: OptimConfig) -> list[dict[str, Any]]:
    """Parameters that learn, by factor of the learning rate and by weight decay."""
    members: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            factor = config.trunk_factor if any(part in name for part in _TRUNK) else 1.0
            decays = config.decay_norms_and_biases or parameter.ndim > 1
            members.setdefault((factor, decays), []).append(parameter)
    ordered = sorted(members.items(), key=lambda item: (-item[0][0], not item[0][1]))
    return [
        {"params": parameters, "factor": factor, **({} if decays else {"weight_decay": 0.0})}
        for (factor, decays), parameters in ordered
    ]


def set_learning_rate(optimizer: torch.optim.Optimizer, learning_rate: float) -> None:
    """The learning rate of every parameter group: this one times the group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate * group["factor"]


def gradient_norm(model: nn.Module, clip_norm: float | None) -> torch.Tensor:
    """L2 norm of all gradients, [] float, before clipping them to `clip_norm` in place where that is given."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None])
    if clip_norm is not None:
        torch.nn.utils.clip_grads_with_norm_(model.parameters(), clip_norm, norm)
    return norm
