"""Checkpoints to go on from: written aside, synced, then renamed, so that a name is proof of a complete one.

A checkpoint is a folder `step_00000100` with `tensors.safetensors` (weights, momentum, random state) and
`state.json` (counters and the position in the data). Unfinished or doomed folders end in `.part`. Several processes
write together, each some of the tensors into a file of its own, through torch.distributed.checkpoint; any number of
processes goes on from either.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.distributed.checkpoint.api import CheckpointException as DistributedCheckpointError

from ovbridge.console import stderr
from ovbridge.errors import CheckpointError
from ovbridge.training.average import WeightAverage
from ovbridge.training.ranks import Peers

TENSORS_FILE = "tensors.safetensors"
_NAME = re.compile(r"step_(\d{8})")
_PART = ".part"


@dataclass(frozen=True, kw_only=True)
class TrainingState:
    """Everything besides weights and momentum that a run needs to go on exactly as if it had not stopped."""

    step: int
    """Steps done."""
    batches: dict[str, Any]
    """Position in the data, from the batch source's `state_dict()`."""
    skipped_steps: int = 0
    """Steps dropped so far because their loss or gradient was not finite."""
    scaler: dict[str, Any] | None = None
    """State of the fp16 loss scale; None where none is used."""


def save_checkpoint(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    state: TrainingState,
    *,
    keep: int | None,
    average: WeightAverage | None = None,
    peers: Peers | None = None,
) -> Path:
    """Write `folder/step_…` atomically and drop all but the newest `keep` (None drops none); returns its path.

    All processes of a run must call it, on a file system that they share. Raises CheckpointError where the disk
    refuses; the checkpoints already there are untouched then.
    """
    peers = peers or Peers()
    final = folder / f"step_{state.step:08d}"
    aside = final.with_name(final.name + _PART)
    try:
        if peers.ranks.is_first:
            aside.mkdir(parents=True, exist_ok=True)
        peers.wait()
        _write_tensors(aside, _tensors(model, optimizer, average), peers)
        peers.wait()
        if peers.ranks.is_first:
            _complete(aside, final, state)
            # What is numbered higher could not be read, or this run would have gone on from it: it counts for nothing.
            known = [path for path in complete_checkpoints(folder) if path.name <= final.name]
            for old in known[: -keep if keep else 0]:
                _discard(old)
    except (OSError, SafetensorError, DistributedCheckpointError) as error:
        # A disk that is full stays full while the remains of this attempt lie on it.
        shutil.rmtree(aside, ignore_errors=True)
        raise CheckpointError(
            f"cannot write {final}: {_one_line(error)}; earlier checkpoints are kept: free the disk, then repeat the "
            "same command"
        ) from None
    return final


def _write_tensors(aside: Path, tensors: dict[str, Tensor], peers: Peers) -> None:
    if peers.alone:
        save_file(tensors, aside / TENSORS_FILE)
        return
    # Here: it takes a second to import, and a single process never needs it.
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
    from torch.distributed.checkpoint.state_dict_saver import save

    for name, value in tensors.items():
        if name.startswith("random."):
            peers.from_first(value)
    # Each tensor is the same everywhere; the planner gives each process some of them to write.
    save(tensors, storage_writer=HuggingFaceStorageWriter(str(aside), save_distributed=True))


def _complete(aside: Path, final: Path, state: TrainingState) -> None:
    """Add the counters to the tensors, then make the whole a checkpoint by renaming it."""
    files = sorted(path.name for path in aside.glob("*.safetensors"))
    (aside / "state.json").write_text(json.dumps({**vars(state), "files": files}))
    for written in (*aside.iterdir(), aside):
        sync(written)
    if final.exists():
        _discard(final)
    aside.rename(final)
    sync(final.parent)


def complete_checkpoints(folder: Path) -> list[Path]:
    """The checkpoints below `folder`, oldest first."""
    if not folder.is_dir():
        return []
    return sorted(path for path in folder.iterdir() if _NAME.fullmatch(path.name))


def resume_latest(
    folder: Path,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    average: WeightAverage | None = None,
    peers: Peers | None = None,
) -> TrainingState | None:
    """Load the newest readable checkpoint into `model`, `optimizer` and `average`; None where there is none.

    Remains of a killed run are cleared away. A damaged checkpoint is passed over for the one before it, with a
    warning. Raises CheckpointError if all are damaged.
    """
    peers = peers or Peers()
    if peers.ranks.is_first:
        for remains in folder.glob(f"*{_PART}") if folder.is_dir() else ():
            shutil.rmtree(remains, ignore_errors=True)
    peers.wait()
    found = complete_checkpoints(folder)
    for path in reversed(found):
        try:
            return load_checkpoint(path, model, optimizer, average)
        except CheckpointError as error:
            stderr.print(f"warning: {error}")
    if found:
        raise CheckpointError(f"no checkpoint below {folder} can be read: delete the folder to start over")
    return None


def load_checkpoint(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> TrainingState:
    """Load one checkpoint into `model`, `optimizer`, `average` and the global random state; raises CheckpointError."""
    try:
        state, files = _read_state(path / "state.json")
        tensors: dict[str, Tensor] = {}
        for name in files:
            with safe_open(path / Path(name).name, framework="pt") as file:
                tensors |= {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
        model.load_state_dict(_below("model.", tensors))
        if average is not None:
            average.load(_below("average.", tensors))
        torch.set_rng_state(tensors["random.cpu"])
    except (OSError, ValueError, TypeError, KeyError, RuntimeError, SafetensorError) as error:
        raise CheckpointError(f"checkpoint {path} cannot be read ({_one_line(error)})") from None
    optimizer.state.clear()
    for name, parameter in model.named_parameters():
        for key, value in _below(f"optimizer.{name}:", tensors).items():
            if value.shape == parameter.shape:
                # empty_like keeps the parameter's memory layout and device.
                value = torch.empty_like(parameter.detach()).copy_(value)
            else:
                value = value.to(parameter.device)
            optimizer.state[parameter][key] = value
    if "random.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["random.cuda"])
    return state


def _read_state(path: Path) -> tuple[TrainingState, list[str]]:
    """What `_complete` wrote: the state and the names of the files with the tensors."""
    record = json.loads(path.read_text())
    if not isinstance(record, dict):
        raise ValueError(f"{path.name} holds no record")
    files = record.pop("files", [TENSORS_FILE])
    state = TrainingState(**record)
    numbers = (state.step, state.skipped_steps)
    if not all(isinstance(number, int) for number in numbers) or not isinstance(state.batches, dict):
        raise ValueError(f"{path.name} holds no position in the data")
    return state, files


def sync(path: Path) -> None:
    """Force a file or a folder's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, average: WeightAverage | None = None
) -> dict[str, Tensor]:
    tensors = {f"model.{name}": value for name, value in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        for key, value in optimizer.state.get(parameter, {}).items():
            if isinstance(value, Tensor):
                tensors[f"optimizer.{name}:{key}"] = value
    if average is not None:
        tensors |= {f"average.{name}": value for name, value in average.tensors.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    # Contiguous copies: safetensors refuses shared storage and channels_last strides.
    return {name: value.detach().cpu().clone(memory_format=torch.contiguous_format) for name, value in tensors.items()}


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _discard(path: Path) -> None:
    """Delete a checkpoint such that a kill halfway leaves a `.part`, never half of a complete one."""
    doomed = path.with_name(path.name + ".old" + _PART)
    path.rename(doomed)
    shutil.rmtree(doomed)


def _one_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
