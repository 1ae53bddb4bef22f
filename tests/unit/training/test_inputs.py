"""What a run reads is known by its contents."""

from __future__ import annotations

from pathlib import Path

import pytest

from ovbridge.errors import ConfigError
from ovbridge.training.inputs import fingerprint


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        fingerprint(tmp_path / name)
