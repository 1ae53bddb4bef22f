"""The tensors of weight files from elsewhere (.pth, .pkl, .safetensors), none of which is executed."""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovbridge.detector.array_pickle import read_array_pickle
from ovbridge.errors import CheckpointError

_MOST_UNFOLDING, _ALWAYS_ALLOWED = 32, 16 << 20
"""A compressed archive may hold this many times its own size, and this many bytes in any case: weights shrink by a
few parts in ten, only zeros by more."""


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, and who a `.pkl` says wrote it ("" elsewhere).

    Raises CheckpointError for a missing, truncated, foreign or malicious file.
    """
    if path.is_dir():
        raise CheckpointError(f"{path} is a folder: give the weights file in it")
    if path.suffix == ".pkl":
        return read_array_pickle(path)
    if path.suffix != ".safetensors":
        return read_official(path), ""
    try:
        return load_file(path), ""
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist: give weights of an official model") from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is no complete safetensors file ({error}): download it again") from None


def read_official(path: Path) -> dict[str, Tensor]:
    """The tensors of a `.pth`; objects other than tensors and plain containers are refused, never executed.

    Raises CheckpointError for a missing, truncated, foreign or malicious file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give an official .pth")
    try:
        with warnings.catch_warnings():
            # Of foreign pickles torch says that it might not read them; the error below says it better.
            warnings.simplefilter("ignore")
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_lies_open(path))
    except pickle.UnpicklingError as error:
        reason = _refused_global(str(error))
        raise CheckpointError(f"{path} {reason}: nothing in it was executed; get the file from its authors") from None
    except (
        RuntimeError,
        EOFError,
        OSError,
        LookupError,
        ValueError,
        AttributeError,
        TypeError,
        zipfile.BadZipFile,
    ) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no PyTorch file ({line}): download it again") from None
    for key in ("model", "state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
    if not isinstance(content, dict) or not all(isinstance(value, Tensor) for value in content.values()):
        raise CheckpointError(f"{path} holds no table of tensors: give an official .pth")
    return {str(name).removeprefix("module."): value for name, value in content.items()}


def _lies_open(path: Path) -> bool:
    """Whether the numbers of a `.pth` lie in it as they are, to be mapped: a zip archive of uncompressed records.

    Raises CheckpointError for an archive that would unfold to far more than its size.
    """
    with path.open("rb") as file:
        if file.read(4) != b"PK\x03\x04":
            return False
    with zipfile.ZipFile(path) as archive:
        records = archive.infolist()
    unfolded, size = sum(record.file_size for record in records), path.stat().st_size
    if unfolded > max(_MOST_UNFOLDING * size, _ALWAYS_ALLOWED):
        raise CheckpointError(
            f"{path} unfolds to {unfolded / size:.0f} times its size, as no weights do: get it from its authors"
        )
    return all(record.compress_type == zipfile.ZIP_STORED for record in records)


def _refused_global(message: str) -> str:
    found = re.search(r"\bGLOBAL ([\w.]+)", message)
    if found or "Unsupported" in message:
        what = f" ({found[1]})" if found else ""
        return f"asks for code{what} that a weights file has no need of"
    return "is truncated or no PyTorch file"
