"""Images that belong to an annotation file: read them so that their boxes fit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from ovbridge import images
from ovbridge.errors import DataError
from ovbridge.tar_members import opened

IMAGE_SUFFIXES = images.SUFFIXES

_ORIENTATION_TAG = 0x0112
_TURNED = (5, 6, 7, 8)


def read_image(path: Path, *, expected_hw: tuple[int, int] | None = None) -> np.ndarray:
    """Decode an image to [H, W, 3] uint8 RGB, upright as its EXIF orientation says.

    Args:
        path: The image file.
        expected_hw: Size by the annotation file. Where the pixels as stored have this size and the upright ones have
            not, the boxes were drawn on the pixels as stored, so these are returned.

    Raises:
        DataError: The file is missing, broken, too large, or has the expected size in neither orientation.
    """
    pixels = images.read_image(path)
    if expected_hw is None or pixels.shape[:2] == expected_hw:
        return pixels
    if pixels.shape[1::-1] == expected_hw and _is_turned(path):
        return _as_stored(path)
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
    return (width, height) if _is_turned(path) else (height, width)


def _is_turned(path: Path) -> bool:
    with Image.open(opened(path)) as image:
        return image.getexif().get(_ORIENTATION_TAG) in _TURNED


def _as_stored(path: Path) -> np.ndarray:
    with Image.open(opened(path)) as image:
        image.getexif()[_ORIENTATION_TAG] = 1
        return images.rgb_array(image)
