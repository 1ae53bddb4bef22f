"""Safetensors files that are whole or absent, and equal where their contents are."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from ovbridge.errors import CheckpointError


def write_safetensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write aside, then rename. Raises CheckpointError where `path` cannot be written.

    `metadata` should hold one key: safetensors writes several in random order.
    """
    # A copy of its own for every tensor: safetensors refuses views that share memory.
    own = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    aside = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(own, aside, metadata=metadata)
        with aside.open("rb") as file:
            os.fsync(file.fileno())
        aside.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be written ({reason}): choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            aside.unlink()
