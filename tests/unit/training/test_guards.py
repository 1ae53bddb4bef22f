"""Out of memory, a full disk, a stalled loader, trackers, averaged weights: small stand-ins for what goes wrong."""

from __future__ import annotations

import errno
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

import ovbridge.training.checkpoint
from ovbridge.errors import CheckpointError, ConfigError, DataError
from ovbridge.structures import TrainingImage
from ovbridge.training.average import WeightAverage
from ovbridge.training.checkpoint import TrainingState, complete_checkpoints, resume_latest, save_checkpoint
from ovbridge.training.logging import Tally, over_processes, read_log
from ovbridge.training.loop import Evaluate, LoopConfig, TrainingParts, train
from ovbridge.training.memory import MemoryNeed, memory_line, memory_need, out_of_memory_message
from ovbridge.training.optim import OptimConfig, build_optimizer
from ovbridge.training.prefetch import Batch
from ovbridge.training.trackers import open_tracker

OPTIM = OptimConfig(learning_rate=0.05, warmup_steps=0)


class Batches:
    """Endless batches of 8 images; stands still from batch `stall_at` on."""

    def __init__(self, stall_at: int | None = None) -> None:
        self._next, self._stall_at, self.release = 0, stall_at, threading.Event()

    def __iter__(self) -> Iterator[tuple[Literal["det", "cls"], list[TrainingImage]]]:
        while True:
            if self._next == self._stall_at:
                self.release.wait(60)
            self._next += 1
            yield (
                "det",
                [TrainingImage(image_id=i, pixels=torch.full((3, 2, 2), i, dtype=torch.uint8)) for i in range(8)],
            )

    def state_dict(self) -> dict[str, Any]:
        return {"next": self._next}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._next = state["next"]

    def upcoming(self) -> str:
        return f"batch {self._next} (17.jpg)"


def _losses(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
    values = torch.stack([image.pixels[:, 0, 0].float() for image in batch.images]) / 8
    return {"square": model(values).square().mean()}


def _train(
    folder: Path,
    *,
    losses: Callable[..., dict[str, Tensor]] = _losses,
    batches: Batches | None = None,
    average: float | None = None,
    evaluate: Evaluate | None = None,
    **settings: Any,
) -> TrainingParts:
    folder.mkdir(exist_ok=True)
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    parts = TrainingParts(
        model=model,
        optimizer=build_optimizer(model, OPTIM),
        batches=batches or Batches(),
        losses=losses,
        average=WeightAverage(model, average) if average else None,
        evaluate=evaluate,
    )
    # fp32: sums of parts are compared closely, and "auto" is bf16 where the processor has it.
    config = LoopConfig(**{"steps": 6, "save_every": 2, "log_every": 2, "precision": "fp32", **settings})
    train(parts, folder, config=config, optim=OPTIM, seed=0, stage="base")
    return parts


def test_out_of_memory_on_the_first_step_names_what_fits(tmp_path: Path) -> None:
    def greedy(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        if len(batch.images) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return _losses(model, batch, generator)

    with pytest.raises(ConfigError, match=r"8 det images in a pass; 2 fit: add --set loop\.accumulate=4"):
        _train(tmp_path, losses=greedy)
    with pytest.raises(ConfigError, match=r"4 det images in a pass; 2 fit: add --set loop\.accumulate=4"):
        _train(tmp_path, losses=greedy, accumulate=2)
    assert "lower batches.cls_transform" in out_of_memory_message(0, "cls", 1, 1, 0, 1)
    assert "batches.det=16 " in out_of_memory_message(0, "det", 8, 1, 4, 4)


def test_memory_need_is_counted(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(10, 20), nn.Linear(20, 5))
    need = memory_need(
        model, lambda probe: {"x": probe(torch.ones(4, 10)).square().sum()}, images=4, optimizer="adamw", averaged=True
    )
    weights = 4 * (10 * 20 + 20 + 20 * 5 + 5)
    assert need.fixed == weights * 5  # weights, gradients, two moments, average
    # Kept for the backward pass, a row: input (10), hidden (20), output of the last layer (5), each of 4 bytes.
    assert need.per_image == 4 * (10 + 20 + 5)
    line = memory_line(MemoryNeed(fixed=2_000_000_000, per_image=500_000_000), 16, 12_000_000_000)
    assert line == (
        "memory: a step over 16 images needs about 10.0 GB (2.0 GB for weights, gradients and optimiser); "
        "12.0 GB free, about 20 images would fit"
    )


def test_passes_of_a_batch_give_its_gradient(tmp_path: Path) -> None:
    # The mean over images has no share to weigh it by here, so equal parts are summed: scale is the only difference.
    def halved(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        share = batch.share
        assert share is not None
        return {"square": _losses(model, batch, generator)["square"] * len(batch.images) / share.images}

    whole, parts = _train(tmp_path / "a"), _train(tmp_path / "b", losses=halved, accumulate=3)
    torch.testing.assert_close(whole.model.state_dict(), parts.model.state_dict())
    lines = [read_log(tmp_path / name / "log.jsonl")[-1]["losses"]["square"] for name in "ab"]
    assert lines[0] == pytest.approx(lines[1])


def test_full_disk_keeps_the_last_checkpoint_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(tensors: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    save = ovbridge.training.checkpoint.save_file
    calls = iter([save, full])
    monkeypatch.setattr(ovbridge.training.checkpoint, "save_file", lambda *a: next(calls)(*a))
    with pytest.raises(CheckpointError, match=r"No space left.*earlier checkpoints are kept"):
        _train(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]
    monkeypatch.undo()
    straight = _train(tmp_path / "straight")
    assert torch.equal(_train(tmp_path).model.weight, straight.model.weight)  # the same command goes on


def test_full_disk_in_the_log_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: object, step: int, record: dict[str, Any]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("ovbridge.training.loop.RunLog.write", full)
    with pytest.raises(CheckpointError, match=r"the disk of .* is full .*last complete checkpoint is kept"):
        _train(tmp_path)


def test_stalled_loader_is_named(tmp_path: Path) -> None:
    batches = Batches(stall_at=2)
    with pytest.raises(DataError, match=r"no batch for 0 s: the loader stands still at batch 2 \(17\.jpg\)"):
        _train(tmp_path, batches=batches, data_timeout=0.3)
    batches.release.set()


def test_average_follows_the_weights_and_is_saved(tmp_path: Path) -> None:
    model = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        model.weight.fill_(1.0)
        average = WeightAverage(model, 0.9)
        model.weight.fill_(3.0)
    average.update(model, 1)  # decay (1 + 1) / (10 + 1)
    assert average.tensors["weight"].item() == pytest.approx(1 + 2 * (1 - 2 / 11))
    average.update(model, 1000)
    assert average.tensors["weight"].item() == pytest.approx(3 - 2 * 2 / 11 * 0.9)
    with average.in_place_of(model):
        assert model.weight.item() == average.tensors["weight"].item()
    assert model.weight.item() == 3.0
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    save_checkpoint(tmp_path, model, optimizer, TrainingState(step=1, batches={}), keep=1, average=average)
    other = WeightAverage(model, 0.9)
    resume_latest(tmp_path, model, optimizer, average=other)
    assert torch.equal(other.tensors["weight"], average.tensors["weight"])


def test_evaluation_sees_the_average_and_is_logged(tmp_path: Path) -> None:
    seen: list[tuple[int, float]] = []
    made: list[TrainingParts] = []

    def evaluate(step: int) -> dict[str, float]:
        seen.append((step, 0.0))
        return {"ap50.all": float(step)}

    made.append(_train(tmp_path, average=0.5, evaluate=evaluate, evaluate_every=3, log_every=6))
    assert [step for step, _ in seen] == [3, 6]
    lines = read_log(tmp_path / "log.jsonl")
    assert [(line["step"], line["evaluation"]) for line in lines] == [(3, {"ap50.all": 3.0}), (6, {"ap50.all": 6.0})]
    average = made[0].average
    assert average is not None
    assert not torch.equal(average.tensors["weight"], made[0].model.weight)


def test_profile_is_written(tmp_path: Path) -> None:
    _train(tmp_path, profile_steps=1)
    assert (tmp_path / "profile" / "trace.json").stat().st_size > 100
    assert "Self CPU" in (tmp_path / "profile" / "operations.txt").read_text()


def test_tracker_gets_the_figures_and_an_absent_one_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    got: list[tuple[int, dict[str, float]]] = []
    fake = ModuleType("trackio")
    fake.init = lambda **settings: got.append((-1, settings))  # type: ignore[attr-defined]
    fake.log = lambda values, step: got.append((step, values))  # type: ignore[attr-defined]
    fake.finish = lambda: got.append((-2, {}))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "trackio", fake)
    _train(tmp_path, tracker="trackio")
    assert [step for step, _ in got] == [-1, 2, 4, 6, -2]
    assert {"losses/square", "run/learning_rate", "run/images_per_second"} <= got[1][1].keys()
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(ConfigError, match=r"pip install wandb"):
        open_tracker("wandb", tmp_path)
    assert open_tracker("none", tmp_path) is None


def test_figures_over_processes() -> None:
    left = Tally(sums={"box": 4.0, "label": 2.0}, counts={"box": 2, "label": 1}, images=8, waited_seconds=1, seconds=4)
    right = Tally(sums={"box": 2.0}, counts={"box": 2}, images=8, waited_seconds=3, seconds=5)
    both = over_processes([left, right]).json()
    assert both == {"losses": {"box": 1.5, "label": 1.0}, "images_per_second": 3.2, "data_wait": 0.4}
    assert complete_checkpoints(Path("absent")) == []
