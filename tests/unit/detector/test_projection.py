"""Projections: where weight transfer starts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ovbridge.detector import TwoStageDetector, to_weight_transfer
from ovbridge.detector.config import TransferConfig

FEATURES = 256


def test_identity_start_classifies_as_the_distilled_projection(tiny_detector: Callable[..., TwoStageDetector]) -> None:
    model = tiny_detector()
    region_RF = torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(3))
    before = model.roi_head.logits(region_RF)
    transfer = TransferConfig(hidden=2 * FEATURES + 3, residual_hidden=16, start="identity")
    same = to_weight_transfer(model, transfer).roi_head
    torch.testing.assert_close(same.logits(region_RF), before, rtol=0, atol=1e-4)
    torch.testing.assert_close(same.logits(region_RF), same.classifier(same.projection.distilled(region_RF)))


def test_every_new_layer_learns_from_an_identity_start(tiny_detector: Callable[..., TwoStageDetector]) -> None:
    projection = to_weight_transfer(
        tiny_detector(), TransferConfig(hidden=2 * FEATURES, residual_hidden=16, start="identity")
    ).roi_head.projection
    optimizer = torch.optim.SGD([p for p in projection.parameters() if p.requires_grad], lr=1e-2)
    before = {name: value.clone() for name, value in projection.state_dict().items()}
    region_RF = torch.randn(6, FEATURES, generator=torch.Generator().manual_seed(3))
    for _ in range(2):  # the first layer of the skip branch moves once the second one speaks
        optimizer.zero_grad()
        projection(region_RF).square().mean().backward()
        optimizer.step()
    still = {name for name, value in projection.state_dict().items() if torch.equal(value, before[name])}
    assert still == {"linear.weight", "linear.bias"}


def test_identity_start_needs_two_hidden_units_a_feature(tiny_detector: Callable[..., TwoStageDetector]) -> None:
    with pytest.raises(ValueError, match=r"transfer\.hidden >= 512"):
        to_weight_transfer(tiny_detector(), replace(TransferConfig(), hidden=511, start="identity"))
