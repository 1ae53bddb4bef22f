"""Regions that CLIP names surely become boxes of classes without boxes; nothing else does."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from ovbridge.detector.sampling import SampledRegions
from ovbridge.structures import BoxLabels, RegionTargets
from ovbridge.training.named_regions import NamedRegions, named_boxes, near_columns, with_named

TEXT_KD = torch.eye(4)
"""Four names; class 0 has boxes, 1 and 2 have labels only, 3 has neither."""
RULE = NamedRegions(candidates_K=torch.tensor([False, True, True, False]), probability=0.9)
TRUTH = BoxLabels(boxes_xyxy=torch.tensor([[0.0, 0, 40, 40]]), class_ids=torch.tensor([0]))


def regions(*rows: tuple[list[float], int | None, float]) -> RegionTargets:
    """(box, class that CLIP sees or None where it cannot tell, objectness)."""
    vague = F.normalize(torch.tensor([0.0, 1.0, 0.99, 0.0]), dim=0)
    return RegionTargets(
        boxes_xyxy=torch.tensor([box for box, _, _ in rows]),
        embeddings=torch.stack([vague if k is None else TEXT_KD[k] * 7 for _, k, _ in rows]),
        scores=torch.tensor([score for _, _, score in rows]),
    )


def test_only_sure_unexplained_objects_of_labelled_classes_are_named() -> None:
    found = named_boxes(
        regions(
            ([60.0, 60, 90, 90], 1, 0.9),  # this one
            ([60.0, 0, 90, 30], None, 0.9),  # CLIP wavers between two names
            ([60.0, 0, 90, 30], 1, 0.2),  # hardly an object
            ([60.0, 0, 90, 30], 3, 0.9),  # a class that nobody labelled
            ([60.0, 0, 90, 30], 0, 0.9),  # a class that has boxes
            ([5.0, 5, 20, 20], 2, 0.9),  # a part of the boxed object
            ([20.0, 0, 90, 30], 2, 0.6),  # overlaps it a little: this one too
        ),
        TRUTH,
        RULE,
        TEXT_KD,
    )
    assert found.boxes_xyxy.tolist() == [[60, 60, 90, 90], [20, 0, 90, 30]]
    assert found.class_ids.tolist() == [1, 2]


def test_an_image_without_regions_or_boxes() -> None:
    nothing = BoxLabels(boxes_xyxy=torch.zeros(0, 4), class_ids=torch.zeros(0, dtype=torch.int64))
    assert named_boxes(None, TRUTH, RULE, TEXT_KD).boxes_xyxy.shape == (0, 4)
    assert named_boxes(regions(([1.0, 1, 9, 9], 2, 1.0)), nothing, RULE, TEXT_KD).class_ids.tolist() == [2]


def test_named_boxes_follow_the_true_ones() -> None:
    named = BoxLabels(boxes_xyxy=torch.tensor([[60.0, 60, 90, 90]]), class_ids=torch.tensor([1]))
    both = with_named(TRUTH, named)
    assert both.boxes_xyxy.tolist() == [[0, 0, 40, 40], [60, 60, 90, 90]]
    assert both.class_ids.tolist() == [0, 1]


def test_a_named_class_counts_only_near_its_box() -> None:
    named = BoxLabels(boxes_xyxy=torch.tensor([[60.0, 60, 90, 90]]), class_ids=torch.tensor([1]))
    boxes = torch.tensor([[60.0, 60, 90, 90], [60, 60, 75, 75], [0, 0, 40, 40]])
    sampled = SampledRegions(
        boxes_xyxy=boxes,
        class_ids=torch.tensor([1, 4, 0]),
        true_boxes_xyxy=boxes,
        true_indices=torch.tensor([1, 0, 0]),
    )
    assert near_columns(sampled, named, 4).int().tolist() == [[0, 1, 0, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    none = BoxLabels(boxes_xyxy=torch.zeros(0, 4), class_ids=torch.zeros(0, dtype=torch.int64))
    assert not near_columns(sampled, none, 4).any()
