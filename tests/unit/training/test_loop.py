from __future__ import annotations

import json
import math
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from ovbridge.errors import ConfigError, DataError
from ovbridge.structures import TrainingImage
from ovbridge.training.checkpoint import TrainingState, complete_checkpoints
from ovbridge.training.interrupt import TrainingInterrupted
from ovbridge.training.logging import read_log
from ovbridge.training.loop import LoopConfig, TrainingParts, step_generator, train
from ovbridge.training.optim import OptimConfig, build_optimizer
from ovbridge.training.prefetch import Batch

OPTIM = OptimConfig(learning_rate=0.05, warmup_steps=2)


class CountingBatches:
    """Batch n holds the images 2n and 2n + 1."""

    def __init__(self, fail_at: int | None = None) -> None:
        self._next, self._fail_at = 0, fail_at

    def __iter__(self) -> Iterator[tuple[Literal["det", "cls"], list[TrainingImage]]]:
        while True:
            if self._next == self._fail_at:
                raise DataError(f"image {2 * self._next} is broken")
            n = self._next
            self._next += 1
            pixels = [torch.full((3, 2, 2), i, dtype=torch.uint8) for i in (2 * n, 2 * n + 1)]
            yield "det", [TrainingImage(image_id=int(p[0, 0, 0]), pixels=p) for p in pixels]

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]


class Losses:
    def __init__(self) -> None:
        self.seen: list[int] = []
        self.not_finite_on: set[int] = set()
        self.interrupt_on: int | None = None

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        self.seen += [image.image_id for image in batch.images]
        if self.interrupt_on in self.seen[-2:]:
            os.kill(os.getpid(), signal.SIGINT)
        noise = torch.rand(2, 3, generator=generator)
        out = model(torch.stack([image.pixels[:, 0, 0].float() for image in batch.images]) / 10 + noise)
        bad = math.nan if self.not_finite_on & set(self.seen[-2:]) else 1.0
        return {"square": out.square().mean() * bad, "size": out.abs().mean()}


def _parts(losses: Losses, batches: CountingBatches | None = None) -> TrainingParts:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    return TrainingParts(
        model=model, optimizer=build_optimizer(model, OPTIM), batches=batches or CountingBatches(), losses=losses
    )


def _run(folder: Path, parts: TrainingParts, optim: OptimConfig = OPTIM, **settings: int) -> TrainingState:
    folder.mkdir(exist_ok=True)
    config = LoopConfig(**{"steps": 12, "save_every": 4, "log_every": 3, **settings})
    return train(parts, folder, config=config, optim=optim, seed=7, stage="base")


def _saved(folder: Path) -> list[int]:
    return [int(path.name[-8:]) for path in complete_checkpoints(folder / "checkpoints")]


def test_interrupted_and_resumed_equals_straight(tmp_path: Path) -> None:
    handler = signal.getsignal(signal.SIGINT)
    straight = _parts(Losses())
    _run(tmp_path / "a", straight)
    broken = Losses()
    broken.interrupt_on = 10  # the sixth batch
    with pytest.raises(TrainingInterrupted, match="stopped at step 6 of 12"):
        _run(tmp_path / "b", _parts(broken))
    resumed_losses = Losses()
    resumed = _parts(resumed_losses)
    assert _run(tmp_path / "b", resumed).step == 12
    assert resumed_losses.seen == list(range(12, 24))  # the samples that the straight run saw
    assert torch.equal(straight.model.weight, resumed.model.weight)
    assert torch.equal(straight.model.bias, resumed.model.bias)
    assert signal.getsignal(signal.SIGINT) is handler
    last = [read_log(tmp_path / name / "log.jsonl")[-1] for name in "ab"]
    assert last[0]["losses"] == last[1]["losses"]


def test_log_lines_are_means_over_the_window(tmp_path: Path) -> None:
    _run(tmp_path, _parts(Losses()))
    lines = read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [3, 6, 9, 12]
    assert set(lines[0]) == {
        "step", "stage", "losses", "loss", "learning_rate", "gradient_norm", "images_per_second", "data_wait",
        "memory_mb", "skipped_steps", "seconds",
    }  # fmt: skip
    assert set(lines[0]["losses"]) == {"square", "size"}
    assert any((tmp_path / "tensorboard").iterdir())


def test_lines_beyond_the_checkpoint_are_not_logged_twice(tmp_path: Path) -> None:
    _run(tmp_path, _parts(Losses()), steps=4)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + json.dumps({"step": 6, "stage": "base"}) + '\n{"step": 9, "sta')
    _run(tmp_path, _parts(Losses()), steps=8)
    assert [line["step"] for line in read_log(log)] == [3, 4, 6, 8]


def test_non_finite_loss_is_skipped_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    losses = Losses()
    losses.not_finite_on = {2}
    parts = _parts(losses)
    assert _run(tmp_path, parts).skipped_steps == 1
    assert torch.isfinite(parts.model.weight).all()
    assert all(math.isfinite(line["loss"]) for line in read_log(tmp_path / "log.jsonl"))


def test_lasting_non_finite_loss_ends_the_run(tmp_path: Path) -> None:
    losses = Losses()
    losses.not_finite_on = set(range(10, 24))
    with pytest.raises(ConfigError, match=r"square not finite on images \[14, 15\]; 3 such steps"):
        _run(tmp_path, _parts(losses), max_skipped_steps=2)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000004"]


def test_weights_are_saved_once_a_finite_loss_has_proved_them(tmp_path: Path) -> None:
    losses = Losses()
    losses.not_finite_on = {6, 22}  # steps 4 and 12, the last: the batches after it are finite
    assert _run(tmp_path, _parts(losses), keep_checkpoints=9).skipped_steps == 2
    assert _saved(tmp_path) == [5, 8, 12]


@pytest.mark.parametrize(
    ("learning_rate", "steps", "saved", "says"),
    [
        (1e30, 5, [1], "neither step 5, the last, nor the batches after it have finite losses"),
        (1e38, 1, [], "after step 1 weight holds NaN or infinity"),
    ],
)
def test_a_diverged_run_ends_without_a_result_and_keeps_what_was_good(
    tmp_path: Path, learning_rate: float, steps: int, saved: list[int], says: str
) -> None:
    losses, optim = Losses(), OptimConfig(learning_rate=learning_rate, warmup_steps=0, decay_at=())
    parts = _parts(losses)
    with torch.no_grad():
        parts.model.weight.fill_(5.0)
    for _ in range(2):  # the same command says the same
        with pytest.raises(ConfigError, match=f"{says}.*; the checkpoints from before are kept"):
            _run(tmp_path, parts, optim, steps=steps, save_every=1)
        assert _saved(tmp_path) == saved


@pytest.mark.parametrize("damage", [b"[]", b"3", b'{"stage": "base"}', b'{"step": "3"}', b"\xff\xfe"])
def test_a_damaged_line_of_the_log_costs_no_other(tmp_path: Path, damage: bytes) -> None:
    _run(tmp_path, _parts(Losses()), steps=6)
    log = tmp_path / "log.jsonl"
    log.write_bytes(damage + b"\n" + log.read_bytes())
    _run(tmp_path, _parts(Losses()), steps=9)
    assert [line["step"] for line in read_log(log)] == [3, 6, 9]


def test_error_in_the_data_reaches_the_caller(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="image 6 is broken"):
        _run(tmp_path, _parts(Losses(), CountingBatches(fail_at=3)))


def test_finished_run_does_nothing(tmp_path: Path) -> None:
    _run(tmp_path, _parts(Losses()))
    again = Losses()
    assert _run(tmp_path, _parts(again)).step == 12
    assert again.seen == []


def test_step_generator_depends_on_seed_and_step_only() -> None:
    draws = {(s, t): torch.rand(1, generator=step_generator(s, t)).item() for s in (0, 1) for t in (0, 1)}
    assert len(set(draws.values())) == 4
    assert draws[1, 1] == torch.rand(1, generator=step_generator(1, 1)).item()
