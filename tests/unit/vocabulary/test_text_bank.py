from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ovbridge.errors import VocabularyError
from ovbridge.vocabulary import TextBank


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_an_array_of_real_numbers_is_read(tmp_path: Path, dtype: str) -> None:
    np.save(tmp_path / "bank.npy", np.eye(2, 3, dtype=dtype))
    bank = TextBank.from_npy(tmp_path / "bank.npy", ["a", "b"], encoder="x")
    assert bank.embeddings_KD.tolist() == [[1, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize(
    ("values", "said"), [(np.array([["1", "2"]]), "<U1"), (np.array([[1 + 2j]]), "complex"), (None, "several arrays")]
)
def test_an_array_of_anything_else_is_refused(tmp_path: Path, values: Any, said: str) -> None:
    file = tmp_path / "bank.npy"
    if values is None:
        with file.open("wb") as handle:
            np.savez(handle, a=np.eye(2))
    else:
        np.save(file, values)
    with pytest.raises(VocabularyError, match=rf"bank\.npy holds {said}.*\[K, D\]"):
        TextBank.from_npy(file, ["a"], encoder="x")
