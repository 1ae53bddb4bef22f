"""Masks of annotation files: drawn as pycocotools draws them, refused where it would read out of bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from ovbridge.data.masks import decode_masks, segmentation_fault


def compressed(bitmap: np.ndarray) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(bitmap.astype(np.uint8)))
    return {"size": [int(v) for v in rle["size"]], "counts": rle["counts"].decode()}


def test_every_mask_that_can_be_encoded_is_accepted_and_drawn() -> None:
    rng = np.random.default_rng(0)
    for density in (0.0, 0.02, 0.5, 0.98, 1.0):
        for height, width in ((1, 1), (7, 5), (40, 300), (300, 40)):
            bitmap = rng.random((height, width)) < density
            bitmap[height // 3 : height // 2, : width // 2] = True
            rle = compressed(bitmap)
            assert segmentation_fault(rle, height, width) is None
            np.testing.assert_array_equal(decode_masks([rle], height, width)[0], bitmap)
            assert segmentation_fault(rle | {"counts": rle["counts"].encode()}, height, width) is None


def test_a_polygon_may_reach_out_of_its_image() -> None:
    polygon = [[-300.5, -2, 5000, -2, 5000, 2, -300.5, 2]]
    assert segmentation_fault(polygon, 4, 5) is None
    assert decode_masks([polygon], 4, 5)[0].tolist() == [[True] * 5] * 2 + [[False] * 5] * 2


@pytest.mark.parametrize(
    ("segmentation", "reason"),
    [
        ({"size": [4, 5], "counts": "~~~~"}, "cannot be read"),
        ({"size": [4, 5], "counts": "o"}, "cannot be read"),
        ({"size": [4, 5], "counts": "\u20ac1"}, "cannot be read"),
        ({"size": [4, 5], "counts": 7}, "cannot be read"),
        ({"size": [4, 5], "counts": "1"}, "sum to its 20 pixels"),
        ({"size": [4, 5], "counts": [3, 4]}, "sum to its 20 pixels"),
        ({"size": [4, 5], "counts": [30, -10]}, "sum to its 20 pixels"),
        ({"size": [4, 6], "counts": [24]}, "6x4 pixels on an image of 5x4"),
        ({"size": [4], "counts": [4]}, "height, width"),
        ({"size": ["4", 5], "counts": [20]}, "height, width"),
        ({"counts": [20]}, "without 'size'"),
        ([[0, 0, 1, 1]], "fewer than three points"),
        ([[0, 0, 1, 1, 2, None]], "finite numbers"),
        ([[0, 0, 1, 1, 2, float("nan")]], "finite numbers"),
        ([[0, 0, 1, 1, 2, 10**400]], "finite numbers"),
        ([[0, 0, 1, 1, 2, -1e9]], "farther than 100000"),
        (None, "neither polygons nor RLE"),
    ],
)
def test_what_cannot_be_drawn_is_said(segmentation: Any, reason: str) -> None:
    fault = segmentation_fault(segmentation, 4, 5)
    assert fault is not None
    assert reason in fault
