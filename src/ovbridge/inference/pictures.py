"""A picture in any form in which it may be given, as the array that the network starts from."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovbridge.errors import DataError
from ovbridge.images import read_image, rgb_array

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any]
Pixels = np.ndarray[Any, np.dtype[np.uint8]]
"""[H, W, 3] RGB."""


def picture_pixels(image: ImageLike) -> Pixels:
    """[H, W, 3] uint8 RGB of whatever was given, contiguous and writable; raises DataError."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return _pillow_pixels(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(f"an image array must be [H, W, 3] uint8 in RGB order, got {array.shape} {array.dtype}")
    if 0 in array.shape:
        raise DataError(f"the image array is empty: its shape is {array.shape}")
    # A mirrored view (bgr[:, :, ::-1]) has strides that PyTorch does not take.
    whole = np.require(array, requirements=["C", "W"])
    return whole if whole.ndim == 3 and whole.shape[2] == 3 else rgb_array(Image.fromarray(whole))


def check_several(images: object, what: str) -> None:
    """Raise DataError where one picture stands in the place of a list: it would be taken apart."""
    if isinstance(images, (str, Path, Image.Image)) or (isinstance(images, np.ndarray) and images.ndim < 4):
        raise DataError(f"{what} is one picture, not several: give a list, e.g. ['photo.jpg']")


def pixels_digest(pixels: Sequence[Pixels]) -> bytes:
    """Of several pictures in their order; equal for equal pixels, wherever they came from."""
    digest = hashlib.blake2b(digest_size=32)
    for array in pixels:
        digest.update(repr(array.shape).encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.digest()


def _pillow_pixels(image: Image.Image) -> Pixels:
    if 0 in image.size:
        raise DataError(f"the Pillow image is empty: it has {image.size[0]} x {image.size[1]} pixels")
    try:
        return rgb_array(image)
    except Exception as error:  # Lazily opened: decoders raise whatever a damaged file drives them into.
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"the Pillow image cannot be decoded ({reason}): open a whole file") from None
