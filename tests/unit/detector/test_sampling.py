"""Matching and sampling, by hand."""

from __future__ import annotations

import torch

from ovbridge.detector.anchors import cell_anchors, grid_anchors
from ovbridge.detector.sampling import match, sample_anchors, sample_balanced, sample_regions


def test_match_thresholds_and_rescue() -> None:
    iou = torch.tensor([[0.1, 0.3, 0.6, 0.7], [0.2, 0.25, 0.05, 0.0]])
    matched, labels = match(iou, 0.3, 0.7, rescue=False)
    assert matched.tolist() == [1, 0, 0, 0]
    assert labels.tolist() == [0, -1, -1, 1]
    # The second true box overlaps no anchor well: its best one (0.25) becomes positive all the same.
    _, labels = match(iou, 0.3, 0.7, rescue=True)
    assert labels.tolist() == [0, 1, -1, 1]


def test_match_without_true_boxes_is_all_negative() -> None:
    matched, labels = match(torch.zeros(0, 5), 0.3, 0.7, rescue=True)
    assert matched.tolist() == labels.tolist() == [0] * 5


def test_rescue_of_a_true_box_that_meets_nothing_is_detectron2s() -> None:
    iou = torch.tensor([[0.8, 0.1, 0.0], [0.0, 0.0, 0.0]])
    matched, labels = match(iou, 0.3, 0.7, rescue=True)
    assert (matched.tolist(), labels.tolist()) == ([0, 0, 0], [1, 1, 1])
    # Every box in the picture meets an anchor, even one of a thousandth of a pixel in its corner.
    anchors = grid_anchors((4, 4), 16, cell_anchors((32.0,), (1.0,)))
    corner = torch.tensor([[63.999, 63.999, 64.0, 64.0]])
    targets = sample_anchors(anchors, corner, iou_thresholds=(0.3, 0.7), count=8, positive_fraction=0.5)
    assert (targets.labels == 1).nonzero().flatten().tolist() == [15]


def test_balanced_sample_fills_up_with_negatives(generator: torch.Generator) -> None:
    def last(n: int, k: int, generator: torch.Generator | None) -> torch.Tensor:
        return torch.arange(n - k, n)

    positive = torch.tensor([True, False, True, True, False, False, False])
    found, rest = sample_balanced(positive, ~positive, 4, 0.5, choose=last, generator=generator)
    assert (found.tolist(), rest.tolist()) == ([2, 3], [5, 6])
    few = torch.tensor([True, False, False, False, False, False, False])
    found, rest = sample_balanced(few, ~few, 4, 0.5, choose=last, generator=generator)
    assert (found.tolist(), rest.tolist()) == ([0], [4, 5, 6])


def test_sampled_anchors_carry_their_true_box(generator: torch.Generator) -> None:
    anchors = torch.tensor([[0.0, 0, 10, 10], [0, 0, 9, 10], [50, 50, 60, 60], [100, 0, 110, 10]])
    truth = torch.tensor([[50.0, 50, 60, 61], [0, 0, 10, 10]])
    targets = sample_anchors(
        anchors, truth, iou_thresholds=(0.3, 0.7), count=8, positive_fraction=0.5, generator=generator
    )
    assert targets.labels.tolist() == [1, 1, 1, 0]
    assert targets.boxes_xyxy.tolist() == [[0, 0, 10, 10], [0, 0, 10, 10], [50, 50, 60, 61]]


def test_sampled_regions_start_with_foreground_and_include_true_boxes(generator: torch.Generator) -> None:
    proposals = torch.tensor([[0.0, 0, 4, 10], [50, 50, 60, 60], [0, 0, 10, 9]])
    truth, class_ids = torch.tensor([[0.0, 0, 10, 10], [200, 200, 220, 220]]), torch.tensor([7, 3])
    found = sample_regions(
        proposals,
        truth,
        class_ids,
        num_classes=80,
        foreground_iou=0.5,
        count=8,
        foreground_fraction=0.5,
        generator=generator,
    )
    assert sorted(found.class_ids[:3].tolist()) == [3, 7, 7]
    assert found.class_ids[3:].tolist() == [80, 80]
    for box, true_box, class_id in zip(
        found.boxes_xyxy[:3].tolist(), found.true_boxes_xyxy[:3].tolist(), found.class_ids[:3].tolist(), strict=True
    ):
        assert true_box == truth[0 if class_id == 7 else 1].tolist()
        assert box in [*proposals.tolist(), *truth.tolist()]


def test_sampled_regions_of_an_image_without_boxes_are_background(generator: torch.Generator) -> None:
    found = sample_regions(
        torch.rand(20, 4),
        torch.zeros(0, 4),
        torch.zeros(0, dtype=torch.int64),
        num_classes=5,
        foreground_iou=0.5,
        count=8,
        foreground_fraction=0.25,
        generator=generator,
    )
    assert found.class_ids.tolist() == [5] * 8
    assert found.true_boxes_xyxy.shape == (8, 4)
