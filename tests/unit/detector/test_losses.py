"""Each loss against a value worked out by hand, and on empty input."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ovbridge.detector import losses


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


def test_classification_sums_over_classes_and_averages_over_regions() -> None:
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, -1.0]])
    # Region 0 is class 1, region 1 background.
    row0 = softplus(1.0) + softplus(2.0) + softplus(0.5)
    row1 = softplus(0.0) + softplus(3.0) + softplus(-1.0)
    assert losses.classification_loss(logits, torch.tensor([1, 3])).item() == pytest.approx((row0 + row1) / 2)
    # Without column 2; a positive of a masked column does not count either.
    masked = losses.classification_loss(logits, torch.tensor([1, 3]), torch.tensor([True, True, False]))
    expected = (row0 - softplus(0.5) + row1 - softplus(-1.0)) / 2
    assert masked.item() == pytest.approx(expected)


def test_federated_columns_hold_the_present_classes_and_fill_up(generator: torch.Generator) -> None:
    frequency = torch.tensor([1.0, 0.0, 2.0, 3.0, 0.0, 1.0])
    # Present: 0, 4 and background (6), which takes one of the five places.
    chosen = losses.federated_columns(torch.tensor([0, 4, 6, 6]), frequency, 5, generator=generator)
    assert chosen[[0, 4]].all()
    assert int(chosen.sum()) == 4
    assert not chosen[1]
    # More wanted than can be drawn: all that have a weight.
    everything = losses.federated_columns(torch.tensor([0]), frequency, 50, generator=generator)
    assert everything.tolist() == [True, False, True, True, False, True]
    # More present than wanted: nothing is drawn, nothing dropped.
    assert losses.federated_columns(torch.tensor([0, 1, 2]), frequency, 1).tolist() == [True] * 3 + [False] * 3


def test_box_regression_is_l1_over_the_normaliser() -> None:
    loss = losses.box_regression_loss(torch.tensor([[1.0, 0, 0, -2]]), torch.tensor([[0.5, 0, 0, 1]]), 7.0)
    assert loss.item() == pytest.approx(3.5 / 7)
    smooth = losses.box_regression_loss(torch.tensor([[0.5, 0, 0, 0]]), torch.zeros(1, 4), 1.0, beta=1.0)
    assert smooth.item() == pytest.approx(0.125)


def test_objectness() -> None:
    loss = losses.objectness_loss(torch.tensor([2.0, -1.0]), torch.tensor([True, False]), 4.0)
    assert loss.item() == pytest.approx((softplus(-2.0) + softplus(-1.0)) / 4)


def test_mask_is_a_mean() -> None:
    loss = losses.mask_loss(torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[True, False]]]))
    assert loss.item() == pytest.approx((softplus(0.0) + softplus(2.0)) / 2)


def test_pointwise_l1_is_a_mean_over_elements() -> None:
    loss = losses.pointwise_l1(torch.tensor([[1.0, 0.0]]), torch.tensor([[0.6, 0.8]]))
    assert loss.item() == pytest.approx(1.2 / 2)


def test_relation_loss_matches_hand_values() -> None:
    student = torch.eye(2)
    teacher = torch.tensor([[1.0, 0.0], [0.6, 0.8]])
    # Gram matrices: identity, and [[1, .6], [.6, 1]]; rows by L1: [.625, .375].
    code = losses.relation_loss(student, teacher)
    assert code.item() == pytest.approx(4 * 0.375**2)
    norm = math.sqrt(1.36)
    paper = losses.relation_loss(student, teacher, row_norm="l2", reduction="mean_square")
    assert paper.item() == pytest.approx(2 * ((1 - 1 / norm) ** 2 + (0.6 / norm) ** 2) / 4)


def test_relation_loss_is_zero_for_rotated_embeddings() -> None:
    teacher = torch.nn.functional.normalize(torch.randn(5, 3, generator=torch.Generator().manual_seed(1)), dim=1)
    rotation, _ = torch.linalg.qr(torch.randn(3, 3, generator=torch.Generator().manual_seed(2)))
    assert losses.relation_loss(teacher @ rotation, teacher).item() == pytest.approx(0, abs=1e-10)


def test_image_label_loss_averages_labels_then_images() -> None:
    logits = torch.tensor([[1.0, -1.0, 0.0], [2.0, 0.0, 0.0], [0.0, 0.0, 3.0]])
    # Image 4 has the first two labels (classes 0 and 1), image 9 the third (class 2, here the last column).
    first = softplus(-1.0) + softplus(-1.0) + softplus(0.0)
    second = softplus(2.0) + softplus(0.0) + softplus(0.0)
    third = softplus(0.0) + softplus(0.0) + softplus(-3.0)
    loss = losses.image_label_loss(logits, torch.tensor([0, 1, 2]), torch.tensor([4, 4, 9]))
    assert loss.item() == pytest.approx(((first + second) / 2 + third) / 2)


def _leaf(*shape: int) -> Tensor:
    return torch.zeros(*shape, requires_grad=True)


@pytest.mark.parametrize(
    "loss",
    [
        lambda x: losses.classification_loss(x(0, 5), torch.zeros(0, dtype=torch.int64)),
        lambda x: losses.box_regression_loss(x(0, 4), torch.zeros(0, 4), 0.0),
        lambda x: losses.objectness_loss(x(0), torch.zeros(0, dtype=torch.bool), 0.0),
        lambda x: losses.mask_loss(x(0, 28, 28), torch.zeros(0, 28, 28)),
        lambda x: losses.pointwise_l1(x(0, 8), torch.zeros(0, 8)),
        lambda x: losses.relation_loss(x(0, 8), torch.zeros(0, 8)),
        lambda x: losses.relation_loss(x(0, 8), torch.zeros(0, 8), reduction="mean_square"),
        lambda x: losses.image_label_loss(x(0, 5), torch.zeros(0, dtype=torch.int64), torch.zeros(0)),
    ],
)
def test_empty_input_is_zero_and_has_a_backward(loss: object) -> None:
    value = loss(_leaf)  # type: ignore[operator]
    assert value.item() == 0.0
    value.backward()


def test_losses_stay_in_float32_for_half_precision_input() -> None:
    logits = torch.zeros(2, 3, dtype=torch.bfloat16)
    assert losses.classification_loss(logits, torch.tensor([0, 3])).dtype == torch.float32
    assert losses.relation_loss(logits, logits).dtype == torch.float32
