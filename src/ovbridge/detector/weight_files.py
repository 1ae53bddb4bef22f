"""The tensors of weight files from elsewhere (.pth, .pkl, .safetensors), none of which is executed."""

from __future__ import annotations

import pickle
import re
import warnings
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from ovbridge.detector.array_pickle import read_array_pickle
from ovbridge.errors import CheckpointError


def read_weights(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a file by name, and who a `.pkl` says wrote it ("" elsewhere).

    Raises CheckpointError for a missing, truncated, foreign or malicious file.
    """
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
            content: Any = torch.load(path, map_location="cpu", weights_only=True, mmap=_is_zip(path))
    except pickle.UnpicklingError as error:
        reason = _refused_global(str(error))
        raise CheckpointError(f"{path} {reason}: nothing in it was executed; get the file from its authors") from None
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        line = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise CheckpointError(f"{path} is truncated or no PyTorch file ({line}): download it again") from None
    tensors = content.get("model", content) if isinstance(content, dict) else None
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise CheckpointError(f"{path} holds no table of tensors: give an official .pth")
    return {str(name).removeprefix("module."): value for name, value in tensors.items()}


def _is_zip(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == b"PK\x03\x04"


def _refused_global(message: str) -> str:
    found = re.search(r"Unsupported (?:global|operand)[^\n]*?([\w.]+\.[\w.]+)", message)
    if found or "Unsupported" in message:
        what = f" ({found[1]})" if found else ""
        return f"asks for code{what} that a weights file has no need of"
    return "is truncated or no PyTorch file"
