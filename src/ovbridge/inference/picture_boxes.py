"""Boxes in pixels of the picture given, and what they are in the resized picture that the network sees."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovbridge.detector.boxes import clip_boxes, nonempty
from ovbridge.errors import DataError


def picture_size(pixels_HW3: np.ndarray[Any, Any]) -> tuple[int, int]:
    """Height and width."""
    return int(pixels_HW3.shape[0]), int(pixels_HW3.shape[1])


def check_boxes(boxes_xyxy: Tensor, height: int, width: int) -> None:
    """Raise DataError for boxes that are not [N, 4], or of which one has no area inside the picture."""
    if boxes_xyxy.ndim != 2 or boxes_xyxy.shape[1] != 4:
        raise DataError(f"boxes must be [N, 4] (x1, y1, x2, y2) in pixels, got {list(boxes_xyxy.shape)}")
    inside = clip_boxes(boxes_xyxy.float(), (height, width))
    for i in (~nonempty(inside)).nonzero().flatten().tolist()[:1]:
        raise DataError(
            f"box {i} is {boxes_xyxy[i].tolist()}, which has no area inside the picture of {width} x {height} pixels"
        )


def box_scale(resized_HW3: np.ndarray[Any, Any], original_HW3: np.ndarray[Any, Any]) -> Tensor:
    """[4] factors from pixels of the original to pixels of the resized picture."""
    (height, width), (original_height, original_width) = picture_size(resized_HW3), picture_size(original_HW3)
    return torch.tensor([width / original_width, height / original_height] * 2)
