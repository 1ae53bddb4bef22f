"""Pickles of arrays as Python 2 and 3 write them; nothing in a pickle is executed."""

from __future__ import annotations

import os
import pickle
import struct
import tracemalloc
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovbridge.detector.array_pickle import read_array_pickle
from ovbridge.errors import CheckpointError


def _text(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value if len(value) < 256 else b"T" + struct.pack("<i", len(value)) + value


def python2_pickle(arrays: dict[str, np.ndarray], momentum: bool = False) -> bytes:
    """What Python 2's cPickle (protocol 2) makes of {"blobs": arrays}: byte strings, which Python 3 cannot write."""
    body = b"\x80\x02}" + _text(b"blobs") + b"}"
    for name, array in arrays.items():
        shape = b"(" + b"".join(b"J" + struct.pack("<i", n) for n in array.shape) + b"t"
        dtype = (
            b"cnumpy\ndtype\n"
            + _text(b"f4")
            + b"K\x00K\x01\x87R(K\x03"
            + _text(b"<")
            + b"NNN"
            + 2 * b"J\xff\xff\xff\xff"
        )
        dtype += b"K\x00tb"
        body += _text(name.encode()) + b"cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85"
        body += _text(b"b") + b"\x87R(K\x01" + shape + dtype + b"\x89" + _text(array.tobytes()) + b"tbs"
    return body + b"s."


ARRAYS = {
    "conv1_w": np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2),
    "conv1_b": np.array([1.5, -2.0], np.float32),
    "long_w": np.linspace(0, 1, 500, dtype=np.float32),
}


@pytest.mark.parametrize("form", ["python 2", 2, 3, 4, 5])
def test_arrays_come_out_as_they_went_in(tmp_path: Path, form: Any) -> None:
    path = tmp_path / "w.pkl"
    content = python2_pickle(ARRAYS) if form == "python 2" else pickle.dumps({"blobs": ARRAYS}, protocol=form)
    path.write_bytes(content)
    tensors, author = read_array_pickle(path)
    assert author == ""
    assert tensors.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        assert torch.equal(tensors[name], torch.from_numpy(array)), name


def test_every_form_and_type(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    column_major = np.asfortranarray(np.arange(6, dtype=np.float64).reshape(2, 3))
    table = OrderedDict(
        a=column_major,
        b=np.arange(3, dtype=">f4"),
        c=np.float32(2.5),
        d_momentum=np.ones(1),
        note="text",
        e=np.int64(7),
    )
    path.write_bytes(pickle.dumps({"model": table, "__author__": "torchvision", "matching_heuristics": True}))
    tensors, author = read_array_pickle(path)
    assert author == "torchvision"
    assert set(tensors) == {"a", "b", "c", "e"}
    assert tensors["a"].tolist() == column_major.tolist()
    assert tensors["b"].tolist() == [0, 1, 2]
    assert (tensors["c"].item(), tensors["e"].item()) == (2.5, 7)
    path.write_bytes(pickle.dumps(ARRAYS))
    assert set(read_array_pickle(path)[0]) == set(ARRAYS)


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_hostile_pickles_execute_nothing(tmp_path: Path, protocol: int) -> None:
    witness, path = tmp_path / "witness", tmp_path / "w.pkl"
    hostile = [
        Calls(os.system, f"touch {witness}"),
        Calls(Path.touch, witness),
        Calls(eval, f"open({str(witness)!r}, 'w')"),
        Calls(np.save, str(witness), np.zeros(1)),
        Calls(getattr, "text", "upper"),
        Calls(bytearray, 10),
    ]
    for payload in hostile[:5] if protocol == 5 else hostile:
        path.write_bytes(pickle.dumps({"blobs": {"conv1_w": np.zeros(2), "x": payload}}, protocol=protocol))
        with pytest.raises(CheckpointError, match="nothing in it was executed") as caught:
            read_array_pickle(path)
        assert "\n" not in str(caught.value)
        assert not list(tmp_path.glob("witness*"))


def test_object_arrays_damage_and_foreign_files_are_one_line(tmp_path: Path) -> None:
    path = tmp_path / "w.pkl"
    with pytest.raises(CheckpointError, match="does not exist"):
        read_array_pickle(path)
    whole = python2_pickle(ARRAYS)
    cases = [whole[:length] for length in (0, 1, 50, len(whole) // 2, len(whole) - 1)]
    cases += [b"hello, no pickle", pickle.dumps({"x": np.array([{}, 1], dtype=object)}), b"\x80\x02}q\x00(K\x01"]
    # A shape that its bytes do not fill, and a state of the wrong form.
    cases += [
        whole.replace(b"J\x02\x00\x00\x00", b"J\x09\x00\x00\x00", 1),
        b"\x80\x02cnumpy\ndtype\nK\x05\x85R(K\x01tb.",
    ]
    for content in cases:
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="truncated or no pickle of weights") as caught:
            read_array_pickle(path)
        assert "\n" not in str(caught.value)
    for content in ([1, 2], {"blobs": {}}, {"a": "text"}, "text"):
        path.write_bytes(pickle.dumps(content))
        with pytest.raises(CheckpointError, match="holds no table of arrays"):
            read_array_pickle(path)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x02]r" + (60_000_000).to_bytes(4, "little") + b".",
        b"\x80\x02X\x00\x00\x10\x00"
        + b"a" * (1 << 20)
        + b"q\x000c_codecs\nencode\nq\x010("
        + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 200
        + b"t.",
        pickle.dumps({f"w{i}": ARRAYS["long_w"] for i in range(5000)}, protocol=4),
    ],
    ids=["a number to remember by", "one text made bytes many times", "one array under many names"],
)
def test_small_files_do_not_fill_the_memory(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "w.pkl"
    path.write_bytes(content)
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match="unfolds to more than it holds"):
            read_array_pickle(path)
        assert tracemalloc.get_traced_memory()[1] < 16 << 20
    finally:
        tracemalloc.stop()
