"""The training loop: draw a batch, compute its losses, step, log, save.

Everything random in step t is drawn from a generator seeded with (seed, t), and the batch source remembers its
position, so a run that was stopped anywhere goes on bit for bit as if it had not been. Several processes (`peers`)
each compute a part of every batch, see `share`; DistributedDataParallel averages their gradients.
"""

from __future__ import annotations

import hashlib
import math
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn

from ovbridge.console import Ticker, stderr
from ovbridge.device import Precision, autocast, training_precision
from ovbridge.errors import ConfigError
from ovbridge.ranges import COUNT, NOT_NEGATIVE, Range, require_ranges
from ovbridge.training import memory
from ovbridge.training.average import WeightAverage
from ovbridge.training.checkpoint import TrainingState, resume_latest, save_checkpoint
from ovbridge.training.determinism import deterministic
from ovbridge.training.guards import DIVERGED, full_disk_named, require_finite
from ovbridge.training.interrupt import StopRequest, TrainingInterrupted
from ovbridge.training.logging import RunLog, Window, over_processes
from ovbridge.training.optim import OptimConfig, gradient_norm, learning_rate_at, set_learning_rate
from ovbridge.training.prefetch import Batch, BatchSource, Prefetcher
from ovbridge.training.profiling import StepProfiler
from ovbridge.training.ranks import Peers
from ovbridge.training.run_folder import CHECKPOINT_FOLDER
from ovbridge.training.share import shares_of_step
from ovbridge.training.trackers import TrackerName, open_tracker

LossFunction = Callable[[nn.Module, Batch, torch.Generator], dict[str, Tensor]]
"""(model, batch, generator) → weighted losses by name, each a scalar; a loss that does not apply is absent."""

Evaluate = Callable[[int], dict[str, float]]
"""Steps done → figures by name. Leaves the model as it was."""


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
    evaluate_every: int = 0
    """Steps between evaluations, where the run has something to evaluate on; 0 never evaluates."""
    precision: Precision = "auto"
    """"auto" is bf16 where the hardware computes it, fp16 with a loss scale on GPUs where it does not, else fp32."""
    channels_last: bool = True
    """Keep feature maps channel-last, the layout that convolution kernels prefer."""
    prefetch: int = 2
    """Batches drawn ahead."""
    data_timeout: float = 600.0
    """Seconds without a batch after which the loader counts as stalled."""
    accumulate: int = 1
    """Passes in which a process computes its part of a batch, one after another: less memory. The gradient is the same
    but for losses that look at all regions together: relation distillation has a matrix a pass, and the federated loss
    draws its classes anew in each."""
    sampling: Literal["step", "image"] = "step"
    """Randomness of anchor and region sampling: one stream a step, or one an image, which samples the same whatever
    number of processes and passes the batch is computed in. Several of either always use "image"."""
    sync_batch_norm: bool = True
    """On several processes: trained batch norms take their statistics over all of them."""
    ema_decay: float | None = None
    """Keep an exponential moving average of the weights with this decay; it is what is evaluated and kept."""
    compile: bool = False
    """Compile backbone and region trunk with torch.compile; the first steps take minutes."""
    checkpoint_activations: bool = False
    """Compute the backbone's stages a second time in the backward pass instead of keeping what is inside them."""
    max_skipped_steps: int = 10
    """How many steps with a non-finite loss or gradient are dropped before the run stops."""
    profile_steps: int = 0
    """Write a profile of this many steps into the run's folder."""
    tracker: TrackerName = "none"
    """Experiment tracker that gets every line of the log too."""

    def __post_init__(self) -> None:
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ConfigError(f"loop.ema_decay is {self.ema_decay}: give a number between 0 and 1, such as 0.999")
        counts = ("steps", "save_every", "keep_checkpoints", "log_every", "accumulate")
        others = ("evaluate_every", "prefetch", "max_skipped_steps", "profile_steps")
        allowed = dict.fromkeys(counts, COUNT) | dict.fromkeys(others, NOT_NEGATIVE)
        require_ranges(self, "loop.", data_timeout=Range(0, threading.TIMEOUT_MAX, low_open=True), **allowed)


@dataclass(frozen=True, kw_only=True)
class TrainingParts:
    """What the loop drives."""

    model: nn.Module
    """Already on its device, in training mode, with its frozen parts frozen."""
    optimizer: torch.optim.Optimizer
    batches: BatchSource
    losses: LossFunction
    average: WeightAverage | None = None
    """Moving average of the model's weights, or None."""
    evaluate: Evaluate | None = None
    """Called on the first process every `evaluate_every` steps, with the average in the model's place."""


def train(
    parts: TrainingParts,
    folder: Path,
    *,
    config: LoopConfig,
    optim: OptimConfig,
    seed: int,
    stage: str,
    resume_hint: str = "repeat the same call to go on",
    peers: Peers | None = None,
) -> TrainingState:
    """Train up to `config.steps`, going on from the newest checkpoint below `folder`; returns the final state.

    Raises TrainingInterrupted after Ctrl-C or SIGTERM (state saved), ConfigError where losses stay non-finite, weights
    become so, or a step does not fit into memory, DataError where no batch comes, CheckpointError where the disk is
    full.
    """
    peers = peers or Peers()
    first = peers.ranks.is_first
    checkpoints = folder / CHECKPOINT_FOLDER
    state = resume_latest(checkpoints, parts.model, parts.optimizer, average=parts.average, peers=peers)
    if state is not None:
        parts.batches.load_state_dict(state.batches)
        if first:
            stderr.print(f"going on from step {state.step} of {config.steps}")
    else:
        state = TrainingState(step=0, batches=parts.batches.state_dict())
    if state.step >= config.steps:
        require_finite(state.step, parts.model, parts.average, peers)
        return state
    stepper = _Stepper(parts, config=config, optim=optim, seed=seed, state=state, peers=peers)
    with ExitStack() as stack:
        stack.enter_context(full_disk_named(folder))
        stack.enter_context(deterministic())
        # Only the first process writes and shows anything.
        log = tick = None
        if first:
            tracker = open_tracker(config.tracker, folder)
            log = stack.enter_context(RunLog(folder, stage=stage, start_step=state.step, tracker=tracker))
            tick = stack.enter_context(Ticker(f"train {stage}", config.steps, done=state.step))
        profiler = stack.enter_context(StepProfiler(folder, config.profile_steps if first else 0))
        ready = stack.enter_context(Prefetcher(parts.batches, depth=config.prefetch, timeout=config.data_timeout))
        stop = stack.enter_context(StopRequest())
        window, saved_step, save_due = Window(), state.step, False
        while state.step < config.steps:
            state, report = stepper.step(state, ready)
            if parts.average is not None:
                parts.average.update(parts.model, state.step)
            window.add(report.losses, images=report.images, waited_seconds=report.waited_seconds)
            loss = sum(report.losses.values())
            profiler.step()
            if tick is not None:
                tick(note=f"loss {loss:.3f}")
            stopping = peers.any(stop.requested)
            last = state.step == config.steps or stopping
            evaluates = _evaluates_at(parts, config, state.step)
            # Weights that gave no finite loss may be beyond saving, which the next finite one tells.
            save_due = save_due or state.step % config.save_every == 0
            saves = last or (save_due and not report.skipped)
            if saves or evaluates:
                require_finite(state.step, parts.model, parts.average, peers)
            if report.skipped and state.step == config.steps:
                stepper.require_loss(state.step, ready)
            if last or evaluates or state.step % config.log_every == 0:
                tally = over_processes(peers.gather_objects(window.tally()))
                losses = [total for (total,) in peers.gather([loss])]
                if log is not None:
                    record = {
                        **tally.json(),
                        "loss": sum(losses) / len(losses),
                        "learning_rate": report.learning_rate,
                        "gradient_norm": report.gradient_norm,
                        "skipped_steps": state.skipped_steps,
                    }
                    log.write(state.step, record | (_evaluation(parts, state.step) if evaluates else {}))
                window = Window()
            if saves:
                save_checkpoint(
                    checkpoints,
                    parts.model,
                    parts.optimizer,
                    state,
                    keep=None if report.skipped else config.keep_checkpoints,
                    average=parts.average,
                    peers=peers,
                )
                saved_step, save_due = state.step, False
            if stopping and state.step < config.steps:
                raise TrainingInterrupted(f"stopped at step {saved_step} of {config.steps}, saved: {resume_hint}")
    return state


def _evaluates_at(parts: TrainingParts, config: LoopConfig, step: int) -> bool:
    return parts.evaluate is not None and config.evaluate_every > 0 and step % config.evaluate_every == 0


def _evaluation(parts: TrainingParts, step: int) -> dict[str, dict[str, float]]:
    """Figures of the detector after `step` steps, of its averaged weights where there are some."""
    assert parts.evaluate is not None
    with parts.average.in_place_of(parts.model) if parts.average is not None else nullcontext():
        return {"evaluation": parts.evaluate(step)}


@dataclass(frozen=True, kw_only=True)
class _StepReport:
    losses: dict[str, float]
    images: int
    waited_seconds: float
    learning_rate: float
    gradient_norm: float
    skipped: bool
    """Whether nothing was learnt, the losses or their gradient not being finite."""


_NOTHING = "nothing"
_PROOFS = 3
"""Batches of which one must have a finite loss where the last step of a run had none."""


class _Losses(nn.Module):
    """The losses as a module's forward pass, which DistributedDataParallel wants."""

    def __init__(self, model: nn.Module, losses: LossFunction) -> None:
        super().__init__()
        self.model = model
        self._losses = losses

    def forward(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        losses = self._losses(self.model, batch, generator)
        # A process whose images carry nothing to learn from still has to take part in the averaging.
        return losses or {_NOTHING: next(p for p in self.parameters() if p.requires_grad).sum() * 0}


class _Stepper:
    """One optimiser step at a time."""

    def __init__(
        self,
        parts: TrainingParts,
        *,
        config: LoopConfig,
        optim: OptimConfig,
        seed: int,
        state: TrainingState,
        peers: Peers,
    ) -> None:
        self._parts, self._config, self._optim, self._seed, self._peers = parts, config, optim, seed, peers
        self._device = next(parts.model.parameters()).device
        self._precision = training_precision(self._device, config.precision)
        self._scaler = torch.amp.GradScaler(self._device.type, enabled=self._precision == "fp16")
        if state.scaler:
            self._scaler.load_state_dict(state.scaler)
        self._kinds_done: set[str] = set()
        if optim.keep_zero_gradients and state.step > 0:
            # As the steps before left them, so that a run that goes on moves what it would have moved.
            for parameter in parts.model.parameters():
                if parameter.requires_grad and parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
        self._averaging: nn.parallel.DistributedDataParallel | None = None
        if not peers.alone:
            # A batch of image labels does not reach the box heads, so every step has its own set of gradients.
            with warnings.catch_warnings():
                # The option's successor is absent from the oldest torch that is supported.
                warnings.simplefilter("ignore", FutureWarning)
                self._averaging = nn.parallel.DistributedDataParallel(
                    _Losses(parts.model, parts.losses), find_unused_parameters=True, broadcast_buffers=False
                )

    def step(
        self, state: TrainingState, ready: Iterator[tuple[Batch, dict[str, object]]]
    ) -> tuple[TrainingState, _StepReport]:
        """Draw one batch and learn from it; the state after it and what happened."""
        began = time.perf_counter()
        batch, position = next(ready)
        waited = time.perf_counter() - began
        learning_rate = learning_rate_at(state.step, self._config.steps, self._optim)
        set_learning_rate(self._parts.optimizer, learning_rate)
        losses, norm = self._learn_or_say_what_fits(batch, state.step)
        finite = all(map(math.isfinite, losses.values())) and math.isfinite(norm)
        # An overflow of the gradient under fp16 is the loss scale looking for its level; a loss does not depend on it.
        seeking = self._scaler.is_enabled() and all(map(math.isfinite, losses.values()))
        skipped = state.skipped_steps + (not finite and not seeking)
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
            skipped=skipped > state.skipped_steps,
        )
        return after, report

    def _learn_or_say_what_fits(self, batch: Batch, step: int) -> tuple[dict[str, float], float]:
        """`_learn`; the first step of a kind that runs out of memory looks for a batch that does not."""
        try:
            result = self._learn(batch, step)
        except (RuntimeError, MemoryError) as error:
            if not memory.is_out_of_memory(error):
                raise
        else:
            self._kinds_done.add(batch.kind)
            return result
        # Outside the handler, where the error no longer holds on to the step's tensors.
        images = -(-len(batch.images) // self._config.accumulate)
        if batch.kind in self._kinds_done:
            sizes = [tuple(image.pixels.shape[1:]) for image in batch.images]
            raise ConfigError(
                f"step {step} ran out of memory on {len(batch.images)} {batch.kind} images of {max(sizes)} pixels, "
                f"others fitted: the last checkpoint is kept; go on with loop.accumulate={2 * self._config.accumulate}"
            )
        fits = memory.largest_that_fits(images, lambda count: self._try(replace(batch, images=batch.images[:count])))
        world_size = self._peers.ranks.world_size
        raise ConfigError(
            memory.out_of_memory_message(step, batch.kind, images, self._config.accumulate, fits, world_size)
        )

    def _try(self, batch: Batch) -> None:
        """Forward and backward over some images, without peers and without learning."""
        self._parts.optimizer.zero_grad(set_to_none=True)
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
        with autocast(self._device, self._precision):
            losses = self._parts.losses(self._parts.model, batch, step_generator(self._seed, 0))
        if losses:
            torch.stack([loss.float() for loss in losses.values()]).sum().backward()  # type: ignore[no-untyped-call]

    def _learn(self, batch: Batch, step: int) -> tuple[dict[str, float], float]:
        """Losses and gradient norm of one batch; the weights move only if all of them are finite."""
        model, optimizer = self._parts.model, self._parts.optimizer
        optimizer.zero_grad(set_to_none=not self._optim.keep_zero_gradients)
        generator = step_generator(self._seed, step)
        values: dict[str, float] = {}
        passes = self._passes(batch, step)
        for number, part in enumerate(passes, start=1):
            found, finite = self._backward(part, generator, averages=number == len(passes))
            for name, value in found.items():
                values[name] = values.get(name, 0.0) + value
            if not finite:
                return values, math.nan
        if not values and self._peers.alone:
            return {}, 0.0
        self._scaler.unscale_(optimizer)
        norm = float(gradient_norm(model, self._optim.clip_norm))
        if math.isfinite(norm):
            self._scaler.step(optimizer)
        self._scaler.update()
        return values, norm

    def _passes(self, batch: Batch, step: int) -> list[Batch]:
        """The batch whole, or in the parts in which this process computes its share of it."""
        config = self._config
        if self._peers.alone and config.accumulate == 1 and config.sampling == "step":
            return [batch]
        shares = shares_of_step(batch.images, passes=config.accumulate, peers=self._peers, seed=self._seed, step=step)
        return [replace(batch, images=images, share=share) for images, share in shares]

    def _backward(self, batch: Batch, generator: torch.Generator, *, averages: bool) -> tuple[dict[str, float], bool]:
        """Add the gradients of one pass, averaged over the processes if `averages`.

        Returns the losses and whether they are finite on every process; if not, no gradient is added.
        """
        averaging = self._averaging
        with nullcontext() if averaging is None or averages else averaging.no_sync():
            with autocast(self._device, self._precision):
                losses = (averaging or self._alone)(batch, generator)
            if not losses:
                return {}, True
            stacked = torch.stack([loss.float() for loss in losses.values()])
            values = dict(zip(losses, stacked.tolist(), strict=True))
            values.pop(_NOTHING, None)
            finite = not self._peers.any(not all(map(math.isfinite, values.values())))
            if finite:
                self._scaler.scale(stacked.sum()).backward()  # type: ignore[no-untyped-call]
        return values, finite

    def _alone(self, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        return self._parts.losses(self._parts.model, batch, generator)

    def require_loss(self, step: int, ready: Iterator[tuple[Batch, dict[str, object]]]) -> None:
        """Raise ConfigError unless one of the next batches has a finite loss; learns nothing from them."""
        before = {name: value.clone() for name, value in self._parts.model.named_buffers()}
        for _ in range(_PROOFS):
            batch, _ = next(ready)
            generator = step_generator(self._seed, step)
            with torch.no_grad(), autocast(self._device, self._precision):
                losses = [self._alone(part, generator) for part in self._passes(batch, step)]
            values = [float(value) for part in losses for value in part.values()]
            if self._peers.any(bool(values)) and not self._peers.any(not all(map(math.isfinite, values))):
                break
        else:
            raise ConfigError(f"neither step {step}, the last, nor the batches after it have finite losses; {DIVERGED}")
        with torch.no_grad():
            for name, value in self._parts.model.named_buffers():
                value.copy_(before[name])

    def _warn_or_stop(self, step: int, batch: Batch, losses: dict[str, float], skipped: int) -> None:
        bad = [name for name, value in losses.items() if not math.isfinite(value)]
        images = [image.image_id for image in batch.images]
        everyone = self._peers.gather_objects((bad, images))
        bad = sorted({name for names, _ in everyone for name in names}) or ["gradient"]
        images = [image for names, ids in everyone for image in ids if names or bad == ["gradient"]]
        where = f"step {step}: {', '.join(bad)} not finite on images {images}"
        if skipped > self._config.max_skipped_steps:
            raise ConfigError(f"{where}; {skipped} such steps; {DIVERGED}")
        if self._peers.ranks.is_first:
            stderr.print(f"warning: {where}; skipped ({skipped} of at most {self._config.max_skipped_steps})")


def step_generator(seed: int, step: int) -> torch.Generator:
    """The source of all randomness of one step, the same wherever a run was stopped and resumed."""
    digest = hashlib.sha256(f"{seed}:{step}".encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
