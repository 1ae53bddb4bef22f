"""Regions drawn around pseudo boxes: parts of them, which are no object, and loosely placed ones, which still are.

A class that has labels but no boxes never meets a region that misses its objects, so the detector likes a wheel as much
as the bicycle. Detectors with boxes learn the difference from their sampled proposals; these regions stand in for those
(suppression of partial boxes, cf. "background information representation" in open-vocabulary detection).
Legend: L labels of an image, each with one box (x1, y1, x2, y2) in pixels; R regions.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

PARTS = 2
"""Parts drawn of each pseudo box."""
PART_AREA = (0.06, 0.4)
"""Area of a part over that of its box: at most as much as a miss may overlap."""
NARROWEST = 0.15
"""Least width and height of a part over those of its box."""


def parts_of(boxes_L4: Tensor, generator: torch.Generator | None) -> Tensor:
    """`PARTS` random regions inside each box [L * PARTS, 4], of at most 0.4 of its area and so of its IoU."""
    corner_R2, size_R2 = _repeated(boxes_L4)
    draw_R4 = torch.rand(len(size_R2), 4, generator=generator).to(boxes_L4)
    low, high = (math.log(share) for share in PART_AREA)
    area_R = torch.exp(low + (high - low) * draw_R4[:, 0])
    # Any shape of that area that fits: the width is between the area itself (full height) and the whole width.
    narrowest_R = torch.maximum(area_R, area_R.new_tensor(NARROWEST))
    widest_R = torch.minimum(area_R / NARROWEST, torch.ones_like(area_R))
    width_R = narrowest_R * (widest_R / narrowest_R) ** draw_R4[:, 1]
    share_R2 = torch.stack([width_R, area_R / width_R], dim=1)
    start_R2 = corner_R2 + (1 - share_R2) * size_R2 * draw_R4[:, 2:]
    return torch.cat([start_R2, start_R2 + share_R2 * size_R2], dim=1)


def moved(boxes_L4: Tensor, reach: float, image_hw: tuple[int, int], generator: torch.Generator | None) -> Tensor:
    """Each box with every side moved by up to `reach` of its width or height, inside the image [L, 4]."""
    size_L2 = boxes_L4[:, 2:] - boxes_L4[:, :2]
    shift_L4 = (2 * torch.rand(len(boxes_L4), 4, generator=generator).to(boxes_L4) - 1) * reach
    limit = boxes_L4.new_tensor([image_hw[1], image_hw[0]] * 2)
    return torch.minimum((boxes_L4 + shift_L4 * size_L2.repeat(1, 2)).clamp(min=0), limit)


def _repeated(boxes_L4: Tensor) -> tuple[Tensor, Tensor]:
    each_R4 = boxes_L4.repeat_interleave(PARTS, dim=0)
    return each_R4[:, :2], each_R4[:, 2:] - each_R4[:, :2]
