"""Images that belong to an annotation file: read them so that their boxes fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovbridge import images
from ovbridge.errors import DataError
from ovbridge.tar_members import opened

IMAGE_SUFFIXES = images.SUFFIXES

_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)
_RIGHT_TO_LEFT, _BOTTOM_TO_TOP = (7, 8), (6, 7)
"""Of the turned ones: where the upright image's y runs against the stored x, and its x against the stored y."""


@dataclass(frozen=True, kw_only=True)
class AnnotatedPixels:
    """An image in the frame that its annotation file's boxes were drawn in."""

    pixels: np.ndarray
    """[H, W, 3] uint8 RGB."""
    turn: int | None = None
    """The EXIF orientation that would turn the pixels upright; None where they are."""

    def from_upright(self, boxes_xyxy: Tensor) -> Tensor:
        """Boxes [N, 4] of the upright image, as a label store has them, in this frame."""
        if self.turn is None:
            return boxes_xyxy
        height, width = self.pixels.shape[:2]
        y1, x1, y2, x2 = boxes_xyxy.unbind(dim=1)
        if self.turn in _RIGHT_TO_LEFT:
            x1, x2 = width - x2, width - x1
        if self.turn in _BOTTOM_TO_TOP:
            y1, y2 = height - y2, height - y1
        return torch.stack([x1, y1, x2, y2], dim=1)


def read_image(path: Path, *, expected_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image to [H, W, 3] uint8 RGB, upright as its EXIF orientation says.

    Args:
        path: The image file.
        expected_hw: Size by the annotation file, see `read_annotated`.

    Raises:
        DataError: The file is missing, broken, too large, or has the expected size in neither orientation.
    """
    return images.read_image(path) if expected_hw is None else read_annotated(path, expected_hw).pixels


def read_annotated(path: Path, expected_hw: tuple[int, int]) -> AnnotatedPixels:
    """Decode an image so that the boxes of its annotation file fit.

    Upright as its EXIF orientation says; but where the pixels as stored have the size by the annotation file, and the
    upright ones have not, the boxes were drawn on the pixels as stored, so these are returned. Raises as `read_image`.
    """
    pixels = images.read_image(path)
    if pixels.shape[:2] == expected_hw:
        return AnnotatedPixels(pixels=pixels)
    if pixels.shape[1::-1] == expected_hw and (orientation := _orientation(path)) in _TURNED:
        return AnnotatedPixels(pixels=_as_stored(path), turn=orientation)
    height, width = pixels.shape[:2]
    raise DataError(
        f"image {path} is {width}x{height}, its annotation file says {expected_hw[1]}x{expected_hw[0]}: "
        "the boxes would not fit, check that images and annotations belong together"
    )


def image_hw(path: Path) -> tuple[int, int]:
    """Height and width of the upright image, from the header alone; raises DataError as `read_image` does."""
    try:
        with Image.open(opened(path)) as image:
            width, height = image.size
    except (OSError, Image.DecompressionBombError):
        # The reader names what is wrong; a file that it accepts has a size after all.
        height, width = images.read_image(path).shape[:2]
        return height, width
    return (width, height) if _orientation(path) in _TURNED else (height, width)


def _orientation(path: Path) -> int | None:
    with Image.open(opened(path)) as image:
        return image.getexif().get(_ORIENTATION_TAG)


def _as_stored(path: Path) -> np.ndarray:
    with Image.open(opened(path)) as image:
        image.getexif()[_ORIENTATION_TAG] = 1
        return images.rgb_array(image)
