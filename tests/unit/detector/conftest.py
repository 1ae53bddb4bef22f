"""A detector small enough for a test."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from ovbridge.detector import TwoStageDetector, build_detector, world_r18_fpn


@pytest.fixture
def tiny_detector() -> Callable[..., TwoStageDetector]:
    """`tiny_detector(classes=5, seed=0)` → a world detector with narrow stages and an 8-dimensional text bank."""

    def make(classes: int = 5, seed: int = 0) -> TwoStageDetector:
        bank = torch.randn(classes, 8, generator=torch.Generator().manual_seed(7))
        return build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), bank, seed=seed)

    return make
