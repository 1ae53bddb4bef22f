"""Instance masks: polygons and run-length codes of COCO files to bitmaps.

Legend: N instances, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ovbridge.errors import DataError

Segmentation = list[list[float]] | dict[str, Any]
"""COCO polygons [[x, y, x, y, ...], ...] in pixels, or an RLE dict with "size" and "counts" (list or text)."""


def segmentation_fault(segmentation: Any) -> str | None:
    """Why a segmentation cannot be drawn, or None."""
    if isinstance(segmentation, dict):
        return None if {"size", "counts"} <= set(segmentation) else "RLE without 'size' and 'counts'"
    if not isinstance(segmentation, list) or not segmentation:
        return "neither polygons nor RLE"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "a polygon with fewer than three points"
    return None


def to_rle(segmentation: Segmentation, height: int, width: int) -> dict[str, Any]:
    """One compressed RLE of all parts of an instance."""
    from pycocotools import mask as coco_mask

    if isinstance(segmentation, list):
        return dict(coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width)))
    if isinstance(segmentation["counts"], list):
        return dict(coco_mask.frPyObjects(segmentation, height, width))
    return segmentation


def decode_masks(segmentations: Sequence[Segmentation], height: int, width: int) -> np.ndarray:
    """Bitmaps [N, H, W] bool; raises DataError if an RLE is of another size than the image."""
    from pycocotools import mask as coco_mask

    masks = np.zeros((len(segmentations), height, width), dtype=bool)
    for n, segmentation in enumerate(segmentations):
        bitmap = coco_mask.decode(to_rle(segmentation, height, width))
        if bitmap.shape != (height, width):
            raise DataError(f"a mask is {bitmap.shape[1]}x{bitmap.shape[0]}, its image {width}x{height}")
        masks[n] = bitmap.astype(bool)
    return masks
