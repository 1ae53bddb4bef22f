"""The training loop: draw a batch, compute its losses, step, log, save.

Everything random in step t is drawn from a generator seeded with (seed, t), and the batch source remembers its
position, so a run that was stopped anywhere goes on bit for bit as if it had not been.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import deterministic

from ovbridge.console import Ticker, stderr
from ovbridge.device import Precision, autocast
from ovbridge.errors import ConfigError
from ovbridge.training.checkpoint import TrainingState, resume_latest, save_checkpoint
from ovbridge.training.interrupt import StopRequest, TrainingInterrupted
from ovbridge.training.logging import RunLog, Window
from ovbridge.training.optim import OptimConfig, gradient_norm, learning_rate_at, set_learning_rate
from ovbridge.training.prefetch import Batch, BatchSource, Prefetcher
from ovbridge.training.run_folder import CHECKPOINT_FOLDER

LossFunction = Callable[[nn.Module, Batch, torch.Generator], dict[str, Tensor]]
"""(model, batch, generator) → weighted losses by name, each a scalar; a loss that does not apply is absent."""


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long to train, how often to write, in which precision."""

    steps: int
    """Optimiser steps of the whole run."""
    save_every: int = 1000
    """Steps between checkpoints: what a kill can cost at most."""
    keep_checkpoints: int = 2
    """How many of the newest checkpoints stay on disk."""
    log_every: int = 20
    """Steps between lines of the log."""
    precision: Precision = "auto"
    """"auto" is bf16 where the hardware computes it, else fp32."""
    channels_last: bool = True
    """Keep feature maps channel-last, the layout that convolution kernels prefer."""
    prefetch: int = 2
    """Batches drawn ahead."""
    max_skipped_steps: int = 10
    """How many steps with a non-finite loss or gradient are dropped before the run stops."""

    def __post_init__(self) -> None:
        for name in ("steps", "save_every", "keep_checkpoints", "log_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"loop.{name} is {getattr(self, name)}: it must be at least 1")


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What the loop drives."""

    model: nn.Module
    """Already on its device, in training mode, with its frozen parts frozen."""
    optimizer: torch.optim.Optimizer
    batches: BatchSource
    losses: LossFunction


def train(
    parts: TrainingParts,
    folder: Path,
    *,
    config: LoopConfig,
    optim: OptimConfig,
    seed: int,
    stage: str,
    resume_hint: str = "repeat the same call to go on",
) -> TrainingState:
    """Train up to `config.steps`, going on from the newest checkpoint below `folder`; returns the final state.

    Raises TrainingInterrupted after Ctrl-C or SIGTERM (state saved), ConfigError where losses stay non-finite.
    """
    checkpoints = folder / CHECKPOINT_FOLDER
    state = resume_latest(checkpoints, parts.model, parts.optimizer)
    if state is not None:
        parts.batches.load_state_dict(state.batches)
        stderr.print(f"going on from step {state.step} of {config.steps}")
    else:
        state = TrainingState(step=0, batches=parts.batches.state_dict())
    if state.step >= config.steps:
        return state
    stepper = _Stepper(parts, config=config, optim=optim, seed=seed, state=state)
    with ExitStack() as stack:
        stack.enter_context(_deterministic())
        log = stack.enter_context(RunLog(folder, stage=stage, start_step=state.step))
        tick = stack.enter_context(Ticker(f"train {stage}", config.steps, done=state.step))
        ready = stack.enter_context(Prefetcher(parts.batches, depth=config.prefetch))
        stop = stack.enter_context(StopRequest())
        window, saved_step = Window(), state.step
        while state.step < config.steps:
            state, report = stepper.step(state, ready)
            window.add(report.losses, images=report.images, waited_seconds=report.waited_seconds)
            loss = sum(report.losses.values())
            tick(note=f"loss {loss:.3f}")
            last = state.step == config.steps or stop.requested
            if last or state.step % config.log_every == 0:
                log.write(
                    state.step,
                    {
                        **window.summary(),
                        "loss": loss,
                        "learning_rate": report.learning_rate,
                        "gradient_norm": report.gradient_norm,
                        "skipped_steps": state.skipped_steps,
                    },
                )
                window = Window()
            if last or state.step % config.save_every == 0:
                save_checkpoint(checkpoints, parts.model, parts.optimizer, state, keep=config.keep_checkpoints)
                saved_step = state.step
            if stop.requested and state.step < config.steps:
                raise TrainingInterrupted(f"stopped at step {saved_step} of {config.steps}, saved: {resume_hint}")
    return state


@dataclass(frozen=True, kw_only=True)
class _StepReport:
    losses: dict[str, float]
    images: int
    waited_seconds: float
    learning_rate: float
    gradient_norm: float


class _Stepper:
    """One optimiser step at a time."""

    def __init__(
        self, parts: TrainingParts, *, config: LoopConfig, optim: OptimConfig, seed: int, state: TrainingState
    ) -> None:
        self._parts, self._config, self._optim, self._seed = parts, config, optim, seed
        self._device = next(parts.model.parameters()).device
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=config.precision == "fp16")
        if state.scaler:
            self._scaler.load_state_dict(state.scaler)

    def step(
        self, state: TrainingState, ready: Iterator[tuple[Batch, dict[str, object]]]
    ) -> tuple[TrainingState, _StepReport]:
        """Draw one batch and learn from it; the state after it and what happened."""
        began = time.perf_counter()
        batch, position = next(ready)
        waited = time.perf_counter() - began
        learning_rate = learning_rate_at(state.step, self._config.steps, self._optim)
        set_learning_rate(self._parts.optimizer, learning_rate)
        losses, norm = self._learn(batch, step_generator(self._seed, state.step))
        finite = all(map(math.isfinite, losses.values())) and math.isfinite(norm)
        # An overflow under fp16 is the loss scale looking for its level, not a fault.
        skipped = state.skipped_steps + (not finite and not self._scaler.is_enabled())
        if skipped > state.skipped_steps:
            self._warn_or_stop(state.step, batch, losses, skipped)
        after = replace(
            state,
            step=state.step + 1,
            batches=position,
            skipped_steps=skipped,
            scaler=self._scaler.state_dict() if self._scaler.is_enabled() else None,
        )
        report = _StepReport(
            losses=losses if finite else {},
            images=len(batch.images),
            waited_seconds=waited,
            learning_rate=learning_rate,
            gradient_norm=norm if math.isfinite(norm) else 0.0,
        )
        return after, report

    def _learn(self, batch: Batch, generator: torch.Generator) -> tuple[dict[str, float], float]:
        """Losses and gradient norm of one batch; the weights move only if all of them are finite."""
        model, optimizer = self._parts.model, self._parts.optimizer
        optimizer.zero_grad(set_to_none=not self._optim.keep_zero_gradients)
        with autocast(self._device, self._config.precision):
            losses = self._parts.losses(model, batch, generator)
        if not losses:
            return {}, 0.0
        stacked = torch.stack([loss.float() for loss in losses.values()])
        values = dict(zip(losses, stacked.tolist(), strict=True))
        if not all(map(math.isfinite, values.values())):
            return values, math.nan
        self._scaler.scale(stacked.sum()).backward()  # type: ignore[no-untyped-call]
        self._scaler.unscale_(optimizer)
        norm = float(gradient_norm(model, self._optim.clip_norm))
        if math.isfinite(norm):
            self._scaler.step(optimizer)
        self._scaler.update()
        return values, norm

    def _warn_or_stop(self, step: int, batch: Batch, losses: dict[str, float], skipped: int) -> None:
        bad = [name for name, value in losses.items() if not math.isfinite(value)] or ["gradient"]
        where = f"step {step}: {', '.join(bad)} not finite on images {[image.image_id for image in batch.images]}"
        if skipped > self._config.max_skipped_steps:
            raise ConfigError(
                f"{where}; {skipped} such steps, the last good checkpoint is kept: "
                "lower optim.learning_rate or set optim.clip_norm, in another --out"
            )
        stderr.print(f"warning: {where}; skipped ({skipped} of at most {self._config.max_skipped_steps})", markup=False)


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of all randomness of one step, the same wherever a run was stopped and resumed."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))


@contextmanager
def _deterministic() -> Iterator[None]:
    """Deterministic kernels where PyTorch has them, for the duration of the run."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    memory: Any = deterministic  # a module with a property, which its stubs do not have
    fill = memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True, warn_only=True)
    memory.fill_uninitialized_memory = False
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        memory.fill_uninitialized_memory = fill
