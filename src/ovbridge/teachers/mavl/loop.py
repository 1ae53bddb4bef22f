"""The training loop of MAVL: one step, the schedule, and what survives a kill."""

from __future__ import annotations

import json
import math
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor, nn

from ovbridge.console import Ticker, stderr
from ovbridge.errors import CheckpointError
from ovbridge.images import read_image
from ovbridge.teachers.mavl.config import MavlConfig, mavl_small
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.objective import LossConfig, MavlObjective
from ovbridge.teachers.mavl.pretrain import pretrain_backbone
from ovbridge.teachers.mavl.samples import Batch, BatchMaker, GroundedData, SampleConfig, resize, resized_hw


@dataclass(frozen=True, kw_only=True)
class MavlTrainConfig:
    """One training run."""

    model: MavlConfig = field(default_factory=mavl_small)
    """Architecture; the vocabulary size follows from the data."""
    losses: LossConfig = field(default_factory=LossConfig)
    """Weights of the objective."""
    samples: SampleConfig = field(default_factory=SampleConfig)
    """Texts and augmentation."""
    pretrain_steps: int = 900
    """Batches of crops on which a backbone from scratch first learns to name objects; not part of the time budget."""
    steps: int = 4000
    """Length of the run; the schedule ends here or at `max_seconds`, whichever comes first."""
    max_seconds: float | None = None
    """Time budget of the loop. With it the run depends on the machine's speed; without it, on the seed alone."""
    batch_size: int = 8
    """Images a step."""
    learning_rate: float = 6e-4
    """Peak of the cosine schedule (AdamW)."""
    warmup: float = 0.03
    """Part of the run over which the learning rate rises."""
    weight_decay: float = 1e-4
    """AdamW's."""
    clip: float = 1.0
    """Largest gradient norm."""
    seed: int = 0
    """Of initialisation, order, augmentation and texts."""
    threads: int | None = None
    """Torch threads; None leaves them."""
    checkpoint_seconds: float = 120.0
    """How often the run is saved for resuming."""
    half: bool = True
    """Store the final weights as fp16."""


class PixelMemory:
    """All resized images in one uint8 block: decoded once, sliced for ever."""

    def __init__(self, data: GroundedData, folder: Path, short_side: int) -> None:
        shapes = [resized_hw(i.height, i.width, short_side) for i in data.images]
        ends = np.cumsum([h * w * 3 for h, w in shapes])
        self._shapes, self._ends = shapes, ends
        self._block = np.empty(int(ends[-1]), dtype=np.uint8)
        with Ticker("decode", len(shapes)) as tick:
            for n, image in enumerate(data.images):
                self(n)[...] = resize(read_image(folder / image.file_name), short_side)
                tick()

    def __call__(self, index: int) -> np.ndarray:
        """The image [H, W, 3]."""
        h, w = self._shapes[index]
        end = int(self._ends[index])
        return self._block[end - h * w * 3 : end].reshape(h, w, 3)


class TrainingRun:
    """The loop and what survives a kill."""

    def __init__(
        self,
        config: MavlTrainConfig,
        model: Mavl,
        data: GroundedData,
        tokenizer: Tokenizer,
        images: Path,
        out: Path,
        *,
        pretrain: bool,
    ) -> None:
        """Resumes where `out`'s resume file says; `pretrain` is for a backbone that knows nothing yet."""
        self.config, self.model = config, model
        self.objective = MavlObjective(model.config, config.losses)
        pixels = PixelMemory(data, images, model.config.image_short_side)
        self.maker = BatchMaker(
            data,
            tokenizer,
            pixels,
            token_positions=model.config.token_positions,
            config=config.samples,
            seed=config.seed,
        )
        self.optimizer = _optimizer(model, self.objective, config)
        self.step, self.seconds = 0, 0.0
        out.parent.mkdir(parents=True, exist_ok=True)
        self.log = out.with_suffix(".jsonl")
        self.resume_file = out.with_suffix(".resume")
        self._fingerprint = repr((config, len(data.images), model.config))
        if self.resume_file.exists():
            self._resume()
        else:
            self.log.unlink(missing_ok=True)
            if pretrain and config.pretrain_steps:
                pretrain_backbone(model.backbone, data, pixels, steps=config.pretrain_steps, seed=config.seed)
                self._save()

    def loop(self) -> None:
        """Train to the end of the schedule."""
        self.model.train()
        started = time.monotonic() - self.seconds
        saved = time.monotonic()
        per_epoch = len(self.maker.epoch(0, self.config.batch_size))
        epoch_number, epoch = -1, []
        with Ticker("train MAVL", self.config.steps, done=self.step) as tick, self.log.open("a") as log:
            while self.step < self.config.steps and self._progress() < 1.0:
                if self.step // per_epoch != epoch_number:
                    epoch_number = self.step // per_epoch
                    epoch = self.maker.epoch(epoch_number, self.config.batch_size)
                batch = self.maker.batch(epoch[self.step % per_epoch % len(epoch)], self.step)
                rate = self.config.learning_rate * _schedule(self._progress(), self.config.warmup)
                losses = train_step(self.model, self.objective, self.optimizer, batch, rate, self.config.clip)
                self.step += 1
                self.seconds = time.monotonic() - started
                total = sum(losses.values())
                if not math.isfinite(total):
                    raise CheckpointError(f"loss is {total} at step {self.step}: lower learning_rate and start again")
                tick(note=f"loss {total:.2f}")
                if self.step % 20 == 0:
                    record = {"step": self.step, "seconds": self.seconds, "lr": rate, "loss": total, **losses}
                    log.write(json.dumps({name: round(value, 6) for name, value in record.items()}) + "\n")
                    log.flush()
                if time.monotonic() - saved > self.config.checkpoint_seconds:
                    self._save()
                    saved = time.monotonic()
        self.model.eval()

    def _progress(self) -> float:
        """Part of the run that is done, by steps or by the clock, whichever is further."""
        by_clock = self.seconds / self.config.max_seconds if self.config.max_seconds else 0.0
        return max(self.step / self.config.steps, by_clock)

    def _save(self) -> None:
        content = {
            "fingerprint": self._fingerprint,
            "step": self.step,
            "seconds": self.seconds,
            "model": self.model.state_dict(),
            "objective": self.objective.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),
        }
        partial = self.resume_file.with_suffix(".partial")
        torch.save(content, partial)
        partial.replace(self.resume_file)

    def _resume(self) -> None:
        content: dict[str, Any] = torch.load(self.resume_file, weights_only=True)
        if content["fingerprint"] != self._fingerprint:
            raise CheckpointError(
                f"{self.resume_file} belongs to a run with other settings: delete it or write to another file"
            )
        self.model.load_state_dict(content["model"])
        self.objective.load_state_dict(content["objective"])
        self.optimizer.load_state_dict(content["optimizer"])
        self.step, self.seconds = content["step"], content["seconds"]
        torch.set_rng_state(content["random"])
        stderr.print(f"resuming at step {self.step}")


def train_step(
    model: Mavl, objective: MavlObjective, optimizer: torch.optim.Optimizer, batch: Batch, rate: float, clip: float
) -> dict[str, float]:
    """One update; returns the losses."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
    losses = batch_losses(model, objective, batch)
    optimizer.zero_grad(set_to_none=True)
    torch.stack(list(losses.values())).sum().backward()  # type: ignore[no-untyped-call]
    nn.utils.clip_grad_norm_([p for g in optimizer.param_groups for p in g["params"]], clip)
    optimizer.step()
    return {name: float(value.detach()) for name, value in losses.items()}


def batch_losses(model: Mavl, objective: MavlObjective, batch: Batch) -> dict[str, Tensor]:
    """Encode the images once, all distinct texts once, fuse each pair, and ask the objective."""
    encoded = model.encode(batch.pixels, batch.padding)
    words_UWC = model.encode_text(batch.token_ids, batch.token_padding)
    fused = model.fuse(
        encoded,
        batch.text.image_of_text,
        words_UWC[batch.text_index],
        batch.token_padding[batch.text_index],
    )
    inside = (~batch.token_padding[batch.noun_index]).unsqueeze(-1)
    nouns_KC = (words_UWC[batch.noun_index] * inside).sum(dim=1) / inside.sum(dim=1)
    losses: dict[str, Tensor] = objective(model, encoded, fused, batch.targets, batch.text, nouns_KC)
    return losses


def _optimizer(model: Mavl, objective: MavlObjective, config: MavlTrainConfig) -> torch.optim.Optimizer:
    """AdamW; sampling offsets and reference points learn ten times slower (Deformable DETR)."""
    slow, fast, plain = [], [], []
    for name, parameter in [*model.named_parameters(), *objective.named_parameters()]:
        if "sampling_offsets" in name or "reference_points" in name:
            slow.append(parameter)
        elif parameter.ndim < 2:
            plain.append(parameter)
        else:
            fast.append(parameter)
    groups = [
        {"params": fast, "factor": 1.0, "weight_decay": config.weight_decay},
        {"params": plain, "factor": 1.0, "weight_decay": 0.0},
        {"params": slow, "factor": 0.1, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, fused=True)


def _schedule(progress: float, warmup: float) -> float:
    """Linear rise, then half a cosine."""
    if progress < warmup:
        return (progress + 1e-3) / (warmup + 1e-3)
    return 0.5 * (1.0 + math.cos(math.pi * (progress - warmup) / (1.0 - warmup)))
