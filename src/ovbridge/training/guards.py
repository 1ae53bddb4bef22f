"""What ends a run cleanly: a disk that fills up, weights that are no numbers any more."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from ovbridge.errors import CheckpointError, ConfigError
from ovbridge.training.average import WeightAverage
from ovbridge.training.ranks import Peers

DIVERGED = "the checkpoints from before are kept: lower optim.learning_rate or set optim.clip_norm, in another --out"
"""The remedy for a run whose weights have left all bounds."""

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn a full disk, wherever in the run it shows itself, into one line; raises CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CheckpointError(
            f"the disk of {folder} is full ({error.strerror}): the last complete checkpoint is kept; "
            "free space, then repeat the same command"
        ) from None


def require_finite(step: int, model: nn.Module, average: WeightAverage | None, peers: Peers) -> None:
    """Raise ConfigError, in all processes, unless every weight and its average is a finite number in each."""
    averages = average.tensors if average is not None else {}
    tensors = model.state_dict() | {f"average of {name}": value for name, value in averages.items()}
    kept = {name: value for name, value in tensors.items() if value.is_floating_point()}
    finite = torch.stack([torch.isfinite(value).all() for value in kept.values()]).tolist()
    bad = next((name for name, good in zip(kept, finite, strict=True) if not good), "")
    if peers.any(bool(bad)):
        raise ConfigError(f"after step {step} {bad or 'a weight'} holds NaN or infinity; {DIVERGED}")
