"""Box arithmetic, against hand values and against plain greedy suppression."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from ovbridge.detector.boxes import (
    LOG_SCALE_LIMIT,
    clip_boxes,
    decode_boxes,
    encode_boxes,
    nonempty,
    pairwise_iou,
    suppress_sorted,
)

WEIGHTS = (10.0, 10.0, 5.0, 5.0)


def random_boxes(n: int, generator: torch.Generator, size: float = 60.0) -> Tensor:
    corner = torch.rand(n, 2, generator=generator) * 100
    return torch.cat([corner, corner + torch.rand(n, 2, generator=generator) * size], dim=1)


def test_encode_matches_hand_value() -> None:
    # centre (5, 5) size 10 → centre (7, 4) size (20, 10)
    deltas = encode_boxes(torch.tensor([[0.0, 0, 10, 10]]), torch.tensor([[-3.0, -1, 17, 9]]), WEIGHTS)
    assert deltas[0].tolist() == pytest.approx([2.0, -1.0, 5 * math.log(2), 0.0])


def test_decode_inverts_encode(generator: torch.Generator) -> None:
    reference, target = random_boxes(50, generator) + 0.5, random_boxes(50, generator)
    target[:, 2:] += 1
    reference[:, 2:] += 1
    decoded = decode_boxes(reference, encode_boxes(reference, target, WEIGHTS), WEIGHTS)
    assert torch.allclose(decoded, target, atol=1e-3)


def test_decode_limits_growth() -> None:
    decoded = decode_boxes(torch.tensor([[0.0, 0, 16, 16]]), torch.tensor([[0.0, 0, 100, 1]]), (1.0, 1.0, 1.0, 1.0))
    assert (decoded[0, 2] - decoded[0, 0]).item() == pytest.approx(16 * math.exp(LOG_SCALE_LIMIT))
    assert math.exp(LOG_SCALE_LIMIT) == pytest.approx(62.5)


def test_clip_and_nonempty() -> None:
    boxes = clip_boxes(torch.tensor([[-5.0, -5, 200, 50], [110, 10, 130, 20]]), (40, 100))
    assert boxes.tolist() == [[0, 0, 100, 40], [100, 10, 100, 20]]
    assert nonempty(boxes).tolist() == [True, False]


def test_iou_hand_values() -> None:
    first = torch.tensor([[0.0, 0, 10, 10], [3, 3, 3, 3]])
    second = torch.tensor([[5.0, 0, 15, 10], [20, 20, 30, 30], [3, 3, 3, 3]])
    assert pairwise_iou(first, second).tolist() == [[pytest.approx(1 / 3), 0, 0], [0, 0, 0]]
    assert pairwise_iou(first[:0], second).shape == (0, 3)


@pytest.mark.parametrize("limit", [5, 40, 10_000])
def test_suppress_sorted_is_nms_per_group(limit: int, generator: torch.Generator) -> None:
    n = 600
    boxes = random_boxes(n, generator)
    groups = torch.randint(0, 1203, (n,), generator=generator) % 7 * 200
    scores = torch.arange(n, 0, -1).float()
    expected = []
    for group in groups.unique():
        own = (groups == group).nonzero().flatten()
        expected += own[nms(boxes[own], scores[own], 0.5)].tolist()
    assert suppress_sorted(boxes, groups, 0.5, limit).tolist() == sorted(expected)[:limit]


def test_suppress_sorted_of_nothing() -> None:
    assert suppress_sorted(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64), 0.5, 10).tolist() == []


def test_suppress_sorted_keeps_boxes_at_the_threshold_and_equal_boxes_of_other_groups() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 5], [0, 0, 10, 10], [0, 0, 10, 10]])
    groups = torch.tensor([3, 3, 3, 1202])
    assert suppress_sorted(boxes, groups, 0.5, 10).tolist() == [0, 1, 3]
