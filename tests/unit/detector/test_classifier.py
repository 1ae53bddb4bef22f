"""score = scale * cos(projection(region), text) + bias, and what weight transfer freezes."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ovbridge.detector.classifier import CosineClassifier
from ovbridge.detector.config import ProjectionConfig, TransferConfig
from ovbridge.detector.projection import LinearProjection, WeightTransferProjection, build_projection


def test_logit_is_a_scaled_cosine_whatever_the_lengths() -> None:
    classifier = CosineClassifier(torch.tensor([[3.0, 0.0], [0.0, 0.2]]), scale=50.0, bias=-4.6)
    logits = classifier(torch.tensor([[6.0, 8.0]]))
    assert logits[0].tolist() == pytest.approx([50 * 0.6 - 4.6, 50 * 0.8 - 4.6])
    assert classifier.with_background(logits)[0].tolist() == pytest.approx([25.4, 35.4, -4.6])


def test_background_logit_without_bias_is_zero() -> None:
    classifier = CosineClassifier(torch.eye(2), scale=50.0, bias=None)
    assert classifier.with_background(torch.ones(3, 2))[:, 2].tolist() == [0, 0, 0]
    assert list(classifier.parameters()) == []


def test_text_bank_can_be_replaced() -> None:
    classifier = CosineClassifier(torch.eye(2), scale=1.0, bias=None)
    classifier.set_text_bank(torch.tensor([[0.0, 5.0], [1.0, 1.0], [2.0, 0.0]]))
    assert classifier.num_classes == 3
    assert classifier(torch.tensor([[0.0, 1.0]]))[0].tolist() == pytest.approx([1.0, 0.5**0.5, 0.0])
    with pytest.raises(ValueError, match=r"needs \[K, 2\]"):
        classifier.set_text_bank(torch.zeros(3, 4))


def transfer_projection() -> WeightTransferProjection:
    config = ProjectionConfig(embedding_dim=4, transfer=TransferConfig(hidden=3, residual_hidden=5))
    projection = build_projection(6, config)
    assert isinstance(projection, WeightTransferProjection)
    return projection


def test_weight_transfer_formula(generator: torch.Generator) -> None:
    p, x = transfer_projection(), torch.randn(2, 6, generator=generator)
    weight = F.leaky_relu(p.linear.weight @ p.transfer1.weight.T + p.transfer1.bias, 0.1)
    weight = weight @ p.transfer2.weight.T + p.transfer2.bias
    skip = F.leaky_relu(x @ p.residual1.weight.T + p.residual1.bias, 0.1) @ p.residual2.weight.T + p.residual2.bias
    assert weight.shape == (4, 6)
    assert torch.allclose(p(x), x @ weight.T + skip, atol=1e-6)
    assert torch.allclose(p.distilled(x), x @ p.linear.weight.T + p.linear.bias, atol=1e-6)


def test_weight_transfer_keeps_the_distilled_layer() -> None:
    projection = transfer_projection()
    before = projection.linear.weight.clone()
    optimizer = torch.optim.SGD([p for p in projection.parameters() if p.requires_grad], lr=0.1)
    x = torch.randn(3, 6, requires_grad=True)
    (projection(x).square().sum() + projection.distilled(x).square().sum()).backward()
    optimizer.step()
    assert torch.equal(projection.linear.weight, before)
    assert projection.linear.weight.grad is None
    assert x.grad is not None
    assert all(p.grad is not None and p.grad.any() for p in projection.parameters() if p.requires_grad)


def test_linear_projection_is_one_layer_for_both() -> None:
    projection = build_projection(6, ProjectionConfig(embedding_dim=4))
    assert isinstance(projection, LinearProjection)
    x = torch.randn(2, 6)
    assert torch.equal(projection(x), projection.distilled(x))
