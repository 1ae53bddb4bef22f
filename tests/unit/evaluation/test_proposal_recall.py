import math

import pytest
import torch

from ovbridge.evaluation.proposal_recall import recall_at


def _boxes(*rows):
    return torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)


def test_recall_counts_the_first_k():
    proposals = [_boxes([50, 50, 60, 60], [0, 0, 10, 10], [20, 0, 30, 10])]
    objects = [_boxes([0, 0, 10, 10], [20, 0, 30, 9])]
    assert [recall_at(proposals, objects, k) for k in (1, 2, 3)] == [0.0, 0.5, 1.0]
    assert recall_at(proposals, objects, 3, iou=0.95) == 0.5


def test_one_proposal_finds_one_object():
    twins = _boxes([0, 0, 10, 10], [0, 0, 10, 9])
    assert recall_at([_boxes([0, 0, 10, 10])], [twins], 5) == 0.5
    assert recall_at([_boxes([0, 0, 10, 10], [0, 0, 10, 10])], [twins], 5) == 1.0


def test_images_are_pooled_and_empty_ones_are_fine():
    none = torch.zeros(0, 4)
    box = _boxes([0, 0, 10, 10])
    assert recall_at([box, none, box], [box, box, none], 5) == 0.5
    assert math.isnan(recall_at([box], [none], 5))
    with pytest.raises(ValueError, match="2 images for ground truth of 1"):
        recall_at([box, box], [box], 5)
