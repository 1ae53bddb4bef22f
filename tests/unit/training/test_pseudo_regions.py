"""Parts of pseudo boxes and loosely placed ones: where they lie, and that a seed fixes them."""

from __future__ import annotations

import torch

from ovbridge.detector.boxes import nonempty, pairwise_iou
from ovbridge.training.pseudo_regions import NARROWEST, PART_AREA, PARTS, moved, parts_of

BOXES = torch.tensor([[10.0, 20, 50, 100], [0, 0, 64, 64]]).repeat(200, 1)


def test_parts_lie_inside_and_hold_at_most_their_share_of_the_box(generator: torch.Generator) -> None:
    parts = parts_of(BOXES, generator)
    boxes = BOXES.repeat_interleave(PARTS, dim=0)
    assert parts.shape == (len(BOXES) * PARTS, 4)
    assert bool((parts[:, :2] >= boxes[:, :2] - 1e-3).all())
    assert bool((parts[:, 2:] <= boxes[:, 2:] + 1e-3).all())
    overlap = pairwise_iou(parts, BOXES[:2])[torch.arange(len(parts)), torch.arange(len(parts)) // PARTS % 2]
    assert PART_AREA[0] - 1e-3 <= overlap.min().item() < 0.1
    assert 0.35 < overlap.max().item() <= PART_AREA[1] + 1e-3
    share = (parts[:, 2:] - parts[:, :2]) / (boxes[:, 2:] - boxes[:, :2])
    assert share.min().item() >= NARROWEST - 1e-3
    # Wide ones and high ones alike.
    assert 0.4 < (share[:, 0] > share[:, 1]).float().mean().item() < 0.6


def test_moved_boxes_stay_in_the_image_and_near_their_box(generator: torch.Generator) -> None:
    loose = moved(BOXES, 0.2, (110, 64), generator)
    assert bool(nonempty(loose).all())
    assert loose.min().item() >= 0
    assert bool((loose.amax(dim=0)[2:] <= torch.tensor([64.0, 110.0])).all())
    size = BOXES[:, 2:] - BOXES[:, :2]
    assert bool(((loose - BOXES).abs() <= 0.2 * size.repeat(1, 2) + 1e-4).all())
    assert not torch.equal(loose, BOXES)


def test_a_seed_fixes_them_and_no_box_gives_none() -> None:
    twice = [parts_of(BOXES, torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*twice)
    assert parts_of(BOXES[:0], None).shape == (0, 4)
    assert moved(BOXES[:0], 0.2, (10, 10), None).shape == (0, 4)
