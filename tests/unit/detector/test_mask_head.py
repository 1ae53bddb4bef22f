"""Pasting masks against grid_sample; mask targets by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector.mask_head import mask_targets, paste_masks


def paste_with_grid_sample(probability: Tensor, box: list[float], height: int, width: int) -> Tensor:
    x1, y1, x2, y2 = box
    y = (torch.arange(height) + 0.5 - y1) / (y2 - y1) * 2 - 1
    x = (torch.arange(width) + 0.5 - x1) / (x2 - x1) * 2 - 1
    grid = torch.stack(torch.meshgrid(y, x, indexing="ij")[::-1], dim=-1)
    return F.grid_sample(probability[None, None], grid[None], align_corners=False)[0, 0]


@pytest.mark.parametrize(
    "box",
    [[3.2, 4.7, 30.1, 25.5], [0.0, 0.0, 40.0, 30.0], [-6.3, 10.2, 12.0, 45.0], [10.4, 10.4, 10.9, 11.2]],
)
def test_paste_is_bilinear(box: list[float], generator: torch.Generator) -> None:
    probability = torch.rand(28, 28, generator=generator)
    pasted = paste_masks(probability[None], torch.tensor([box]), (30, 40))[0]
    exact = paste_with_grid_sample(probability, box, 30, 40)
    # Where the value is the threshold itself to float precision either answer is right.
    clear = (exact - 0.5).abs() > 1e-4
    assert torch.equal(pasted[clear], (exact >= 0.5)[clear])


def test_paste_of_an_empty_box_is_empty() -> None:
    assert not paste_masks(torch.ones(1, 28, 28), torch.tensor([[5.0, 5, 5, 9]]), (20, 20)).any()


def test_targets_are_the_mask_inside_the_box() -> None:
    mask = torch.zeros(1, 20, 20, dtype=torch.bool)
    mask[:, 5:15, 5:10] = True
    target = mask_targets(mask, torch.tensor([[5.0, 5, 15, 15]]), 10)
    assert target.shape == (1, 10, 10)
    assert target[0, :, :5].all()
    assert not target[0, :, 5:].any()
