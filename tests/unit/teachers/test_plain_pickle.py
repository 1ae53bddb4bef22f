"""Pickles are read as data: arrays and plain containers come through, anything that would run is refused."""

from __future__ import annotations

import os
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovbridge.errors import DataError
from ovbridge.teachers.plain_pickle import OpaqueTensor, read_plain_pickle


def written(tmp_path: Path, content: Any, protocol: int = 4) -> Path:
    file = tmp_path / "x.pkl"
    file.write_bytes(pickle.dumps(content, protocol=protocol))
    return file


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
def test_plain_values_and_arrays_come_through(tmp_path: Path, protocol: int) -> None:
    content: dict[Any, Any] = {
        "000001": ([[1, 2, 30, 40]], [0.5]),
        17: (np.array([[1, 2, 3, 4], [5, 6, 7, 8]]), np.array([0.25, 0.75], dtype=np.float32)),
        "scalar": np.float64(0.125),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "big endian": np.array([1, 2, 3], dtype=">i4"),
        "none": None,
        "yes": True,
    }
    found = read_plain_pickle(written(tmp_path, content, protocol))
    assert found.keys() == content.keys()
    assert found["000001"] == ([[1, 2, 30, 40]], [0.5])
    np.testing.assert_array_equal(found[17][0], content[17][0])
    assert found[17][1].tolist() == [0.25, 0.75]
    assert (found["scalar"], found["none"], found["yes"]) == (0.125, None, True)
    np.testing.assert_array_equal(found["columns"], content["columns"])
    assert found["big endian"].tolist() == [1, 2, 3]


def test_names_of_old_numpy_are_known(tmp_path: Path) -> None:
    file = written(tmp_path, np.arange(3), 2)
    file.write_bytes(file.read_bytes().replace(b"numpy._core", b"numpy.core"))
    assert read_plain_pickle(file).tolist() == [0, 1, 2]


def test_a_pickled_tensor_is_passed_over(tmp_path: Path) -> None:
    (pair,) = read_plain_pickle(written(tmp_path, [([1, 2, 3, 4], torch.ones(1, 512))]))
    assert pair[0] == [1, 2, 3, 4]
    assert isinstance(pair[1], OpaqueTensor)


class Runs:
    def __init__(self, function: Any, *args: Any) -> None:
        self._call = (function, args)

    def __reduce__(self) -> Any:
        return self._call


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda marker: Runs(os.system, f"touch {marker}"), "system"),
        (lambda marker: Runs(eval, f"open({str(marker)!r}, 'w')"), "eval"),
        (lambda marker: Runs(getattr, os, "system"), "getattr"),
        (lambda marker: {"boxes": [Runs(os.mkdir, str(marker))]}, "mkdir"),
        (lambda marker: Runs(np.fromfile, str(marker)), "fromfile"),
        (lambda marker: Runs(torch.load, str(marker)), "load"),
    ],
)
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_hostile_pickles_are_refused_and_nothing_runs(tmp_path: Path, make: Any, named: str, protocol: int) -> None:
    marker = tmp_path / "ran"
    content = make(marker)
    if named == "getattr":
        content = Runs(getattr, "text", "upper")
    with pytest.raises(DataError, match=named) as caught:
        read_plain_pickle(written(tmp_path, content, protocol))
    assert "refused" in str(caught.value)
    assert not marker.exists()


def test_hand_written_opcodes_reach_no_code(tmp_path: Path) -> None:
    file = tmp_path / "x.pkl"
    for program in (
        b"cos\nsystem\n(S'touch ran'\ntR.",
        b"(S'touch ran'\nios\nsystem\n.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        b"\x80\x04\x8c\x05posix\x8c\x06system\x93\x8c\x04true\x85R.",
    ):
        file.write_bytes(program)
        with pytest.raises(DataError):
            read_plain_pickle(file)
    assert not Path("ran").exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"not a pickle", pickle.dumps(np.array([object()])), pickle.dumps([{1, 2}]), pickle.dumps(np.ones(9))[:-40]],
    ids=["empty", "text", "objects", "a set", "truncated"],
)
def test_damaged_and_foreign_pickles_are_one_line(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "x.pkl"
    file.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_plain_pickle(file)
    assert len(str(caught.value).splitlines()) == 1
    assert str(file) in str(caught.value)


def test_an_array_that_claims_more_than_its_bytes_is_refused(tmp_path: Path) -> None:
    file = written(tmp_path, np.zeros(7, dtype=np.uint8), 4)
    data = file.read_bytes()
    assert data.count(b"K\x07\x85") == 1
    file.write_bytes(data.replace(b"K\x07\x85", b"K\xff\x85"))
    with pytest.raises(DataError, match="size"):
        read_plain_pickle(file)


def test_references_upon_references_do_not_unfold(tmp_path: Path) -> None:
    nested: list[Any] = ["x"]
    for _ in range(40):
        nested = [nested, nested, nested]
    with pytest.raises(DataError, match="unfolds"):
        read_plain_pickle(written(tmp_path, nested))
    endless: list[Any] = []
    endless.append(endless)
    with pytest.raises(DataError, match="unfolds"):
        read_plain_pickle(written(tmp_path, endless))


def refused_within(file: Path, megabytes: int) -> str:
    """The line that refuses the file; fails if reading it took more memory than that."""
    tracemalloc.start()
    try:
        with pytest.raises(DataError) as caught:
            read_plain_pickle(file)
        assert tracemalloc.get_traced_memory()[1] < megabytes << 20
    finally:
        tracemalloc.stop()
    assert len(str(caught.value).splitlines()) == 1
    return str(caught.value)


def test_one_text_made_bytes_many_times_does_not_fill_the_memory(tmp_path: Path) -> None:
    file = tmp_path / "x.pkl"
    again = b"c_codecs\nencode\nq\x010(" + b"h\x01h\x00X\x06\x00\x00\x00latin1\x86R" * 2000
    file.write_bytes(b"\x80\x02X" + (1 << 20).to_bytes(4, "little") + b"a" * (1 << 20) + b"q\x000" + again + b"t.")
    assert "unfolds" in refused_within(file, 16)


@pytest.mark.parametrize(
    "remember", [b"r\xff\xff\xff\x1f", b"p536870911\n"], ids=["in four bytes", "spelled out in digits"]
)
def test_a_number_to_remember_by_does_not_fill_the_memory(tmp_path: Path, remember: bytes) -> None:
    file = tmp_path / "x.pkl"
    file.write_bytes(b"\x80\x02]" + remember + b".")
    assert "unfolds" in refused_within(file, 16)


def test_bytes_that_look_like_such_an_instruction_are_read(tmp_path: Path) -> None:
    values = np.frombuffer(b"r\xff\xff\xff\xffp99999999\n" * 8, dtype=np.uint8)
    np.testing.assert_array_equal(read_plain_pickle(written(tmp_path, values)), values)


def test_an_array_repeated_by_reference_counts_each_time(tmp_path: Path) -> None:
    array = np.zeros(100_000)
    assert "unfolds" in refused_within(written(tmp_path, dict.fromkeys(range(1000), array)), 16)
