"""From a box to what CLIP sees of it: crop rules by name.

`tight` is the paper's: the box in whole pixels, what lies outside the image black (CLIP's own resize then
cuts the ends of long boxes). `square` widens the short side with real context, so nothing is cut off.
`ensemble-1.5` averages the box and a 1.5 times larger one, as ViLD does (arXiv 2104.13921, §3.3).
`masked` shows a square of 1.5 times the long side, out of which the class token reads only the patches that touch
the box: those patches see their context, the embedding does not mix it in (masked attention as in MaskCLIP,
arXiv 2208.08984, §3.3, and OADP, arXiv 2303.05892, §3.2).
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
from ovbridge.teachers.protocol import MaskedRegionEncoder, RegionEncoder

CropRule = Literal["tight", "square", "ensemble-1.5", "masked"]
CROP_RULES: tuple[CropRule, ...] = get_args(CropRule)
ENSEMBLE_SCALE = 1.5
MASKED_SCALE = 1.5
"""Side of the square that `masked` shows, in long sides of the box."""


def check_crop_rule(rule: CropRule, encoder: RegionEncoder) -> None:
    """Raise ConfigError if `encoder` cannot do what `rule` asks of it."""
    if rule == "masked" and not isinstance(encoder, MaskedRegionEncoder):
        raise _cannot_mask(encoder)


def _cannot_mask(encoder: RegionEncoder) -> ConfigError:
    return ConfigError(f"image encoder {encoder.name} cannot mask its attention: use another --crop-rule")


def whole_pixels(box_xyxy: Sequence[float]) -> tuple[int, int, int, int]:
    """The smallest box of whole pixels around `box_xyxy`; whole boxes stay as they are."""
    x1, y1, x2, y2 = box_xyxy
    return math.floor(x1), math.floor(y1), math.ceil(x2), math.ceil(y2)


def square_around(
    box_xyxy: Sequence[float], height: int, width: int, *, scale: float = 1.0
) -> tuple[float, float, float, float]:
    """The square of `scale` times the box's long side about its centre, moved into the image as far as it fits."""
    x1, y1, x2, y2 = box_xyxy
    side = scale * max(x2 - x1, y2 - y1)
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
        case "masked":
            return [masked_crop(image, box_xyxy)[0]]
    raise ConfigError(f"unknown crop rule {rule!r}: use one of {', '.join(CROP_RULES)}")


def masked_crop(image: np.ndarray, box_xyxy: Sequence[float]) -> tuple[np.ndarray, tuple[float, float, float, float]]:
    """The square crop that `masked` shows, and where the box lies in it, in pixels of the crop."""
    x1, y1, x2, y2 = square_around(box_xyxy, *image.shape[:2], scale=MASKED_SCALE)
    # Both sides in whole pixels, and equally many: the encoder must not cut anything off.
    left, top, side = math.floor(x1), math.floor(y1), math.ceil(max(x2 - math.floor(x1), y2 - math.floor(y1)))
    inner = (box_xyxy[0] - left, box_xyxy[1] - top, box_xyxy[2] - left, box_xyxy[3] - top)
    return crop(image, (left, top, left + side, top + side)), inner


def embed_boxes(
    images: Sequence[np.ndarray], boxes_xyxy: Sequence[Tensor], encoder: RegionEncoder, rule: CropRule
) -> list[Tensor]:
    """Embeddings [N_i, D] of the boxes [N_i, 4] of each image, the crops of all images in one batch.

    Raw embeddings for one crop a box; the sum of the unit vectors for an ensemble. Raises ConfigError where `rule`
    is masked and the encoder cannot do it.
    """
    if rule == "masked":
        return _embed_masked(images, boxes_xyxy, encoder)
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


def _embed_masked(images: Sequence[np.ndarray], boxes_xyxy: Sequence[Tensor], encoder: RegionEncoder) -> list[Tensor]:
    if not isinstance(encoder, MaskedRegionEncoder):
        raise _cannot_mask(encoder)
    shown = [masked_crop(image, box) for image, boxes in zip(images, boxes_xyxy, strict=True) for box in boxes.tolist()]
    embeddings = encoder.embed_masked_crops([c for c, _ in shown], [inner for _, inner in shown])
    return list(torch.split(embeddings, [len(boxes) for boxes in boxes_xyxy]))
