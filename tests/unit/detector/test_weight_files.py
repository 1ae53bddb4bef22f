"""Weight files are read right or refused, however they are wrapped."""

from __future__ import annotations

import argparse
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ovbridge.detector.weight_files import read_weights
from ovbridge.errors import CheckpointError


def table() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {f"layer{i}.weight": torch.randn(3 + i, 5, generator=generator) for i in range(4)}


def zipped_again(source: Path, target: Path, compression: int, **changed: bytes) -> Path:
    """The archive with its records written by another program; `changed`: new content of a record by its stem."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", compression) as new:
        for record in old.infolist():
            new.writestr(record.filename, changed.get(Path(record.filename).stem, old.read(record)))
    return target


@pytest.mark.parametrize("compression", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_archive_that_was_zipped_again_gives_the_same_tensors(tmp_path: Path, compression: int) -> None:
    tensors = table()
    torch.save(tensors, tmp_path / "a.pth")
    found, _ = read_weights(zipped_again(tmp_path / "a.pth", tmp_path / "b.pth", compression))
    assert found.keys() == tensors.keys()
    assert all(torch.equal(found[name], value) for name, value in tensors.items())


def test_an_archive_that_unfolds_without_bound_is_refused(tmp_path: Path) -> None:
    torch.save(table(), tmp_path / "a.pth")
    bomb = zipped_again(tmp_path / "a.pth", tmp_path / "b.pth", zipfile.ZIP_DEFLATED, data=bytes(17 << 20))
    with pytest.raises(CheckpointError, match="times its size"):
        read_weights(bomb)


@pytest.mark.parametrize("key", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_what_trainers_wrap_around_a_table_is_taken_off(tmp_path: Path, key: str, prefix: str) -> None:
    tensors = table()
    torch.save({key: {prefix + name: value for name, value in tensors.items()}, "epoch": 3}, tmp_path / "a.pth")
    assert read_weights(tmp_path / "a.pth")[0].keys() == tensors.keys()


class Calls:
    """Unpickling it calls a function."""

    def __init__(self, function: Any, *arguments: Any) -> None:
        self.call = (function, arguments)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call


@pytest.mark.parametrize(
    ("content", "named"),
    [
        (Calls(os.system, "true"), f"{os.name}.system"),
        (Calls(eval, "1"), "eval"),
        (argparse.Namespace(a=1), "argparse.Namespace"),
    ],
)
@pytest.mark.parametrize("as_zip", [True, False])
def test_the_code_that_a_file_asks_for_is_named(tmp_path: Path, content: Any, named: str, as_zip: bool) -> None:
    torch.save({"model": content}, tmp_path / "a.pth", _use_new_zipfile_serialization=as_zip)
    with pytest.raises(CheckpointError, match=rf"asks for code \({named}\).*nothing in it was executed"):
        read_weights(tmp_path / "a.pth")


@pytest.mark.parametrize("name", ["a", "a.pkl", "a.safetensors"])
def test_a_folder_is_called_one(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(CheckpointError, match="is a folder"):
        read_weights(tmp_path / name)
