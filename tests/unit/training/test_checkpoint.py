from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from ovbridge.errors import CheckpointError
from ovbridge.training.checkpoint import TrainingState, complete_checkpoints, resume_latest, save_checkpoint


def _parts(seed: int, kind: str = "sgd") -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).to(memory_format=torch.channels_last)
    if kind == "adamw":
        return model, torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    return model, torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)


def _step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(2, 3, 5, 5)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize(("kind", "moment"), [("sgd", "momentum_buffer"), ("adamw", "exp_avg_sq")])
def test_resumed_run_continues_exactly(tmp_path: Path, kind: str, moment: str) -> None:
    model, optimizer = _parts(0, kind)
    _step(model, optimizer)
    save_checkpoint(tmp_path, model, optimizer, TrainingState(step=1, batches={"at": [3, 4]}, skipped_steps=2), keep=2)
    _step(model, optimizer)
    other, other_optimizer = _parts(1, kind)
    state = resume_latest(tmp_path, other, other_optimizer)
    assert state == TrainingState(step=1, batches={"at": [3, 4]}, skipped_steps=2)
    _step(other, other_optimizer)  # the global random state is part of the checkpoint: the same randn
    for name, value in model.state_dict().items():
        assert torch.equal(value, other.state_dict()[name]), name
    assert next(iter(other_optimizer.state.values()))[moment].is_contiguous(memory_format=torch.channels_last)


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    model, optimizer = _parts(0)
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, model, optimizer, TrainingState(step=step, batches={}), keep=2)
    assert [path.name for path in complete_checkpoints(tmp_path)] == ["step_00000002", "step_00000003"]
    assert len(list(tmp_path.iterdir())) == 2


def test_remains_of_a_killed_save_are_cleared(tmp_path: Path) -> None:
    model, optimizer = _parts(0)
    save_checkpoint(tmp_path, model, optimizer, TrainingState(step=1, batches={}), keep=2)
    (tmp_path / "step_00000002.part").mkdir()
    state = resume_latest(tmp_path, model, optimizer)
    assert state is not None
    assert state.step == 1
    assert [path.name for path in tmp_path.iterdir()] == ["step_00000001"]


def test_damaged_checkpoint_falls_back_to_the_one_before(tmp_path: Path) -> None:
    model, optimizer = _parts(0)
    for step in (1, 2):
        save_checkpoint(tmp_path, model, optimizer, TrainingState(step=step, batches={}), keep=2)
    tensors = tmp_path / "step_00000002" / "tensors.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:100])
    state = resume_latest(tmp_path, model, optimizer)
    assert state is not None
    assert state.step == 1
    (tmp_path / "step_00000001" / "state.json").write_text("{")
    with pytest.raises(CheckpointError, match="no checkpoint below"):
        resume_latest(tmp_path, model, optimizer)


@pytest.mark.parametrize("text", ["null", "5", '{"step": "2", "batches": {}}', '{"step": 2, "batches": []}'])
def test_state_that_is_no_record_falls_back_to_the_one_before(tmp_path: Path, text: str) -> None:
    model, optimizer = _parts(0)
    for step in (1, 2):
        save_checkpoint(tmp_path, model, optimizer, TrainingState(step=step, batches={}), keep=2)
    (tmp_path / "step_00000002" / "state.json").write_text(text)
    state = resume_latest(tmp_path, model, optimizer)
    assert state is not None
    assert state.step == 1


def test_a_damaged_newer_checkpoint_does_not_push_out_the_one_just_saved(tmp_path: Path) -> None:
    model, optimizer = _parts(0)
    for step in (10, 20):
        save_checkpoint(tmp_path, model, optimizer, TrainingState(step=step, batches={}), keep=2)
    (tmp_path / "step_00000020" / "tensors.safetensors").write_bytes(b"half")
    save_checkpoint(tmp_path, model, optimizer, TrainingState(step=12, batches={}), keep=1)
    state = resume_latest(tmp_path, model, optimizer)
    assert state is not None
    assert state.step == 12


def test_refusing_disk_is_one_clear_line(tmp_path: Path) -> None:
    model, optimizer = _parts(0)
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(CheckpointError, match="cannot write"):
        save_checkpoint(tmp_path / "checkpoints", model, optimizer, TrainingState(step=1, batches={}), keep=2)


def test_nothing_to_resume(tmp_path: Path) -> None:
    assert resume_latest(tmp_path / "absent", *_parts(0)) is None
