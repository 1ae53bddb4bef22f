"""Files that cannot be written are one line."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ovbridge.detector.atomic_file import write_safetensors
from ovbridge.errors import CheckpointError


@pytest.mark.parametrize("place", ["/proc/x.safetensors", "{folder}", "{file}/x.safetensors"])
def test_a_place_that_cannot_be_written_is_named(tmp_path: Path, place: str) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "folder").mkdir()
    target = Path(place.format(folder=tmp_path / "folder", file=tmp_path / "notes.txt"))
    with pytest.raises(CheckpointError, match=f"{target} cannot be written .*: choose another place"):
        write_safetensors(target, {"a": torch.zeros(1)}, {})
    assert (tmp_path / "notes.txt").read_text() == "mine"
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "notes.txt"}
