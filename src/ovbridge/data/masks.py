"""Instance masks: polygons and run-length codes of COCO files to bitmaps.

Legend: N instances, H x W pixels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ovbridge.data.numbers import is_finite, is_id
from ovbridge.errors import DataError

Segmentation = list[list[float]] | dict[str, Any]
"""COCO polygons [[x, y, x, y, ...], ...] in pixels, or an RLE dict with "size" and "counts" (list or text)."""

FARTHEST = 100_000
"""Pixels from the origin that a polygon may reach: pycocotools walks its outline pixel by pixel, in 32-bit numbers."""


def segmentation_fault(segmentation: Any, height: int | None = None, width: int | None = None) -> str | None:
    """Why a segmentation cannot be drawn (on an image of that size, where it is given), or None."""
    if isinstance(segmentation, dict):
        return _rle_fault(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        return "neither polygons nor RLE"
    for polygon in segmentation:
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            return "a polygon with fewer than three points"
        if not all(map(is_finite, polygon)):
            return "a polygon with something else than finite numbers"
        if max(map(abs, polygon)) > FARTHEST:
            return f"a polygon that reaches farther than {FARTHEST} pixels"
    return None


def _rle_fault(rle: dict[str, Any], height: int | None, width: int | None) -> str | None:
    if not {"size", "counts"} <= set(rle):
        return "RLE without 'size' and 'counts'"
    size, counts = rle["size"], rle["counts"]
    if not isinstance(size, list | tuple) or len(size) != 2 or not all(is_id(v) and v > 0 for v in size):
        return f"RLE of size {size!r}: [height, width] is needed"
    if height is not None and list(size) != [height, width]:
        return f"RLE of {size[1]}x{size[0]} pixels on an image of {width}x{height}"
    pixels = size[0] * size[1]
    if isinstance(counts, list):
        if not all(map(is_id, counts)) or sum(counts) != pixels:
            return f"RLE whose counts are not whole numbers that sum to its {pixels} pixels"
        return None
    runs = _runs(counts)
    if runs is None or min(runs, default=0) < 0 or sum(runs) != pixels:
        return f"RLE whose compressed counts cannot be read or do not sum to its {pixels} pixels"
    return None


def _runs(text: Any) -> list[int] | None:
    """Run lengths of COCO's compressed counts: six bits a character, differences to the run before last; None if torn.

    The decoder of pycocotools trusts them, and reads and writes out of bounds where they lie.
    """
    data = text.encode("ascii", "replace") if isinstance(text, str) else text
    if not isinstance(data, bytes):
        return None
    runs: list[int] = []
    value = shift = 0
    for byte in data:
        bits = byte - 48
        if not 0 <= bits < 64 or shift > 60:
            return None
        value |= (bits & 0x1F) << shift
        shift += 5
        if bits & 0x20:
            continue
        if bits & 0x10:
            value -= 1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        value = shift = 0
    return None if shift else runs


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
