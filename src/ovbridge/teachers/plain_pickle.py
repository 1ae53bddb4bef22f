"""Reading the pickles that others released without running them.

A pickle is a program. This reader lets it build lists, tuples, dictionaries, text, numbers and numpy arrays of
numbers; the few names that a pickled array mentions are answered by stand-ins of ours, every other name is refused,
so no code outside this file is ever reached. Pickled torch tensors are recognised and left unread. Nothing may take
more memory than a few times the size of the file: what is repeated by reference counts each time.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.errors import DataError
from ovbridge.pickle_bounds import TOO_MUCH, BoundedUnpickler, check_memo

_NUMBER_KINDS = frozenset("biuf")


class OpaqueTensor:
    """Stands for a pickled torch tensor, whose values are not read."""


class _Dtype:
    """A numeric numpy dtype, spelled out by the pickle."""

    def __init__(self, spec: object = None, *_: object) -> None:
        self._spec, self._big_endian = str(spec), False

    def __setstate__(self, state: object) -> None:
        self._big_endian = isinstance(state, tuple) and len(state) > 1 and state[1] == ">"

    def numpy(self) -> np.dtype[Any]:
        dtype = np.dtype(self._spec).newbyteorder(">" if self._big_endian else "<")
        if dtype.kind not in _NUMBER_KINDS or dtype.subdtype is not None:
            raise ValueError(f"an array of {dtype}, not of numbers")
        return dtype


class _Array:
    """A pickled array: filled by its state, turned into numpy afterwards."""

    def __init__(self) -> None:
        self._parts: tuple[Any, ...] = ((0,), _Dtype("f8"), False, b"")

    def __setstate__(self, state: Any) -> None:
        self._parts = tuple(state[-4:])

    def numpy(self) -> np.ndarray:
        shape, dtype, column_major, raw = self._parts
        if not isinstance(dtype, _Dtype) or not isinstance(raw, bytes | bytearray):
            raise ValueError("an array of objects")
        kind, shape = dtype.numpy(), tuple(int(n) for n in shape)
        if min(shape, default=0) < 0 or math.prod(shape) * kind.itemsize != len(raw):
            raise ValueError("an array whose size does not fit its bytes")
        return np.frombuffer(raw, dtype=kind).reshape(shape, order="F" if column_major else "C")


class _Type:
    """Stands for `numpy.ndarray` where a pickle names it as an argument."""


def _reconstruct(*_: object) -> _Array:
    return _Array()


def _from_buffer(raw: object, dtype: object, shape: object, order: object) -> _Array:
    array = _Array()
    array.__setstate__((shape, dtype, order == "F", raw))
    return array


def _scalar(dtype: object, raw: object) -> _Array:
    array = _Array()
    array.__setstate__(((), dtype, False, raw))
    return array


def _tensor(*_: object) -> OpaqueTensor:
    return OpaqueTensor()


def _empty(*_: object) -> dict[Any, Any]:
    return {}


_KNOWN: dict[tuple[str, str], Callable[..., object]] = {
    ("numpy", "ndarray"): _Type,
    ("numpy", "dtype"): _Dtype,
    ("collections", "OrderedDict"): _empty,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch.storage", "_load_from_bytes"): _tensor,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): _reconstruct for core in ("core", "_core")},
    **{(f"numpy.{core}.multiarray", "scalar"): _scalar for core in ("core", "_core")},
    **{(f"numpy.{core}.numeric", "_frombuffer"): _from_buffer for core in ("core", "_core")},
}


class _RefusedError(Exception):
    pass


class _PlainUnpickler(BoundedUnpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if (module_name, global_name) == ("_codecs", "encode"):
            return self.encode
        try:
            return _KNOWN[module_name, global_name]
        except KeyError:
            raise _RefusedError(f"{module_name}.{global_name}") from None


def read_plain_pickle(path: Path) -> Any:
    """The content of a pickle file: lists, tuples, dicts, text, bytes, numbers, numpy arrays, `OpaqueTensor`.

    Raises DataError, having executed nothing, where the file is missing, damaged, or holds anything else.
    """
    try:
        data = path.read_bytes()
        check_memo(data)
        return _Walker(limit=len(data) + 1).plain(_PlainUnpickler(data).load(), 0)
    except _RefusedError as refused:
        raise DataError(
            f"{path} wants {refused}: refused, only lists, tuples, dictionaries, text, numbers and arrays are read"
        ) from None
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from None
    except Exception as error:  # a damaged pickle drives the reader into any of them
        line = " ".join(str(error).split())[:150] or type(error).__name__
        raise DataError(f"{path} is not a pickle of plain values ({line}): fetch it again") from None


class _Walker:
    """Turns stand-ins into arrays. A small file cannot mean more values than it has bytes: that stops references
    upon references, which would unfold to gigabytes."""

    _DEEPEST = 50

    def __init__(self, limit: int) -> None:
        self._left = limit

    def plain(self, value: Any, depth: int) -> Any:
        self._left -= 1
        if self._left < 0 or depth > self._DEEPEST:
            raise ValueError(TOO_MUCH)
        if isinstance(value, list | tuple):
            return type(value)(self.plain(v, depth + 1) for v in value)
        if type(value) is dict:
            return {self.plain(k, depth + 1): self.plain(v, depth + 1) for k, v in value.items()}
        if isinstance(value, _Array):
            array = value.numpy()
            self._left -= array.size
            if self._left < 0:
                raise ValueError(TOO_MUCH)
            return array if array.shape else array.item()
        if isinstance(value, str | bytes | int | float | OpaqueTensor) or value is None:
            return value
        raise ValueError(f"a {type(value).__name__.strip('_')} by itself")
