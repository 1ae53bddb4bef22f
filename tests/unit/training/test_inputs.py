"""What a run reads is known by its contents."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ovbridge.errors import ConfigError, VocabularyError
from ovbridge.training.inputs import fingerprint
from ovbridge.vocabulary import TextBank


def test_fingerprint_is_of_the_contents(tmp_path: Path) -> None:
    for name, text in (("a", "same"), ("b", "same"), ("c", "other")):
        (tmp_path / name).write_text(text)
    assert fingerprint(tmp_path / "a") == fingerprint(tmp_path / "b") != fingerprint(tmp_path / "c")


@pytest.mark.parametrize("name", ["absent.safetensors", "."])
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        fingerprint(tmp_path / name)


def test_a_name_that_the_text_bank_lacks_is_said_with_the_command_that_makes_it() -> None:
    bank = TextBank(names=("mug",), embeddings_KD=torch.ones(1, 4), encoder="test")
    with pytest.raises(VocabularyError, match=r"for 'kite', 'hat': make a bank .* with 'ovbridge label text'"):
        bank.select(["kite", "mug", "hat"])
