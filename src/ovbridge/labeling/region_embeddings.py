"""From a box to what CLIP sees of it: crop rules by name.

`tight` is the paper's: the box in whole pixels, what lies outside the image black (CLIP's own resize then
cuts the ends of long boxes). `square` widens the short side with real context, so nothing is cut off.
`ensemble-1.5` averages the box and a 1.5 times larger one, as ViLD does (arXiv 2104.13921, §3.3).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.errors import ConfigError
from ovbridge.teachers.protocol import RegionEncoder

CropRule = Literal["tight", "square", "ensemble-1.5"]
CROP_RULES: tuple[CropRule, ...] = get_args(CropRule)
ENSEMBLE_SCALE = 1.5


def whole_pixels(box_xyxy: Sequence[float]) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels around `box_xyxy`; whole boxes stay as they are."""
    x1, y1, x2, y2 = box_xyxy
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def square_around(box_xyxy: Sequence[float], height: int, width: int) -> tuple[float, float, float, float]:
    """The square of the box's long side about its centre, moved into the image as far as it fits."""
    x1, y1, x2, y2 = box_xyxy
    side = max(x2 - x1, y2 - y1)
    left, top = (x1 + x2 - side) / 2, (y1 + y2 - side) / 2
    left = min(max(left, 0.0), width - side) if side <= width else left
    top = min(max(top, 0.0), height - side) if side <= height else top
    return left, top, left + side, top + side


def enlarged(box_xyxy: Sequence[float], scale: float) -> tuple[float, float, float, float]:
    """The box `scale` times as wide and high about its centre."""
    x1, y1, x2, y2 = box_xyxy
    grow_x, grow_y = (x2 - x1) * (scale - 1) / 2, (y2 - y1) * (scale - 1) / 2
    return x1 - grow_x, y1 - grow_y, x2 + grow_x, y2 + grow_y


def crop(image: np.ndarray, box_xyxy: Sequence[float]) -> np.ndarray:
    """The pixels of `image` [H, W, 3] inside the box, in whole pixels; outside the image they are black."""
    height, width = image.shape[:2]
    x1, y1, x2, y2 = whole_pixels(box_xyxy)
    window = np.zeros((y2 - y1, x2 - x1, 3), dtype=np.uint8)
    left, top, right, bottom = max(x1, 0), max(y1, 0), min(x2, width), min(y2, height)
    if left < right and top < bottom:
        window[top - y1 : bottom - y1, left - x1 : right - x1] = image[top:bottom, left:right]
    return window


def crops_of(image: np.ndarray, box_xyxy: Sequence[float], rule: CropRule) -> list[np.ndarray]:
    """The crops that `rule` takes of one box: one, or two for the ensemble."""
    height, width = image.shape[:2]
    match rule:
        case "tight":
            return [crop(image, box_xyxy)]
        case "square":
            return [crop(image, square_around(box_xyxy, height, width))]
        case "ensemble-1.5":
            return [crop(image, box_xyxy), crop(image, enlarged(box_xyxy, ENSEMBLE_SCALE))]
    raise ConfigError(f"unknown crop rule {rule!r}: use one of {', '.join(CROP_RULES)}")


def embed_boxes(
    images: Sequence[np.ndarray], boxes_xyxy: Sequence[Tensor], encoder: RegionEncoder, rule: CropRule
) -> list[Tensor]:
    """Embeddings [N_i, D] of the boxes [N_i, 4] of each image, the crops of all images in one batch.

    Raw embeddings for one crop a box; the sum of the unit vectors for an ensemble.
    """
    crops = [
        c
        for image, boxes in zip(images, boxes_xyxy, strict=True)
        for box in boxes.tolist()
        for c in crops_of(image, box, rule)
    ]
    counts = [len(boxes) for boxes in boxes_xyxy]
    embeddings = encoder.embed_crops(crops) if crops else torch.zeros(0, encoder.embedding_dim)
    per_box = len(crops) // max(sum(counts), 1)
    if per_box > 1:
        embeddings = F.normalize(embeddings, dim=1).reshape(-1, per_box, embeddings.shape[1]).sum(dim=1)
    return list(torch.split(embeddings, counts))
