"""Tables of numpy arrays out of a pickle (Caffe2's and Detectron2's `.pkl` weights), without running anything in it.

A pickle is a program that may import and call whatever it names. Here it may name five things, each of which is a
small stand-in of this file: the pickle's own classes and functions are never looked up.
"""

from __future__ import annotations

import pickle
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovbridge.errors import CheckpointError
from ovbridge.pickle_bounds import TOO_MUCH, BoundedUnpickler, check_memo

_NUMBERS = {"f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "b1"}
"""numpy's codes of the element types that weights may have."""

_DAMAGE = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    OverflowError,
    MemoryError,
    RecursionError,
    UnicodeError,
    ImportError,
)
"""What a damaged pickle drives the unpickler into."""


class _ForbiddenNameError(Exception):
    """The pickle names something that weights have no need of."""


class _DataType:
    """Stand-in for numpy.dtype: a code such as f4, and the byte order."""

    def __init__(self, code: str, *_: Any) -> None:
        self.code, self.order = str(code), "<"

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        self.order = ">" if state[1] == ">" else "<"

    def numpy(self) -> np.dtype[Any]:
        if self.code not in _NUMBERS:
            raise ValueError(f"arrays of type {self.code[:20]!r}")
        return np.dtype(self.order + self.code)


class _Array:
    """Stand-in for numpy.ndarray: what is needed to make one from bytes."""

    def __init__(self) -> None:
        self.fill(b"", None, (), "C")

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, column_major, content = state
        self.fill(content, dtype, shape, "F" if column_major else "C")

    def fill(self, content: Any, dtype: Any, shape: Any, order: Any) -> _Array:
        self._parts = content, dtype, shape, order
        return self

    def numpy(self) -> np.ndarray:
        content, dtype, shape, order = self._parts
        if isinstance(content, str):
            # Python 2 strings arrive as text of code points 0 to 255.
            content = content.encode("latin1")
        if not isinstance(content, (bytes, bytearray)) or not isinstance(dtype, _DataType):
            raise ValueError("arrays of objects")
        flat = np.frombuffer(content, dtype.numpy())
        return flat.reshape(tuple(int(n) for n in shape), order="F" if order == "F" else "C")


class _ArrayUnpickler(BoundedUnpickler):
    def find_class(self, module: str, name: str) -> Callable[..., Any]:
        known: dict[tuple[str, str], Callable[..., Any]] = {
            ("collections", "OrderedDict"): OrderedDict,
            ("_codecs", "encode"): self.encode,
            ("numpy", "ndarray"): _Array,
            ("numpy", "dtype"): _DataType,
            ("multiarray", "_reconstruct"): lambda kind, shape, code: _Array(),
            ("multiarray", "scalar"): lambda dtype, content: _Array().fill(content, dtype, (), "C"),
            ("numeric", "_frombuffer"): lambda content, dtype, shape, order: _Array().fill(
                content, dtype, shape, order
            ),
        }
        for prefix in ("numpy.core.", "numpy._core."):
            module = module.removeprefix(prefix)
        if (module, name) not in known:
            raise _ForbiddenNameError(f"{module}.{name}")
        return known[module, name]


def _tensors(table: Mapping[Any, Any], limit: int) -> dict[str, Tensor]:
    """The arrays of a table without momentum; ValueError where they have more than `limit` bytes together."""
    tensors: dict[str, Tensor] = {}
    for name, stored in table.items():
        if isinstance(stored, _Array) and not str(name).endswith("_momentum"):
            array = stored.numpy()
            limit -= array.nbytes
            if limit < 0:
                raise ValueError(TOO_MUCH)
            tensors[str(name)] = torch.from_numpy(np.array(array, dtype=array.dtype.newbyteorder("="), order="C"))
    return tensors


def read_array_pickle(path: Path) -> tuple[dict[str, Tensor], str]:
    """The tensors of a `.pkl` and who its `__author__` says wrote it ("" where it says nothing).

    Takes Caffe2's form (a table of arrays, perhaps under "blobs"; momentum is left out) and Detectron2's (under
    "model"). Raises CheckpointError for a missing, truncated, foreign or malicious file.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a .pkl of weights")
    try:
        data = path.read_bytes()
        check_memo(data)
        content = _ArrayUnpickler(data, "latin1").load()
        author = content.get("__author__", "") if isinstance(content, dict) else ""
        for key in ("model", "blobs"):
            if isinstance(content, dict) and isinstance(content.get(key), dict):
                content = content[key]
        # Twice: two names may share an array.
        tensors = _tensors(content, 2 * len(data)) if isinstance(content, dict) else {}
    except _ForbiddenNameError as error:
        name = str(error)[:80]
        raise CheckpointError(
            f"{path} asks for code ({name}) that a weights file has no need of: nothing in it was executed; "
            "get the file from its authors"
        ) from None
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror}): give a .pkl of weights") from None
    except _DAMAGE as error:
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(f"{path} is truncated or no pickle of weights ({line}): download it again") from None
    if not tensors:
        raise CheckpointError(f"{path} holds no table of arrays: give a .pkl of weights")
    return tensors, str(author)
