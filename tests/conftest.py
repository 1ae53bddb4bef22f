"""Where tests find the real data: `../shared` beside the checkout, or the folder named by OVBRIDGE_SHARED."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch


def _shared() -> Path:
    return Path(os.environ.get("OVBRIDGE_SHARED", Path(__file__).parents[2] / "shared"))


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real photographs, annotations and CLIP embeddings; skips where they are not at hand."""
    path = _shared() / "data"
    if not path.is_dir():
        pytest.skip(f"real data not at hand: {path} does not exist")
    return path


@pytest.fixture(scope="session")
def goldens() -> Path:
    """Figures computed with the official implementation; skips where they are not at hand."""
    path = _shared() / "goldens"
    if not path.is_dir():
        pytest.skip(f"golden figures not at hand: {path} does not exist")
    return path


@pytest.fixture
def generator() -> torch.Generator:
    """A freshly seeded source of randomness."""
    return torch.Generator().manual_seed(0)
