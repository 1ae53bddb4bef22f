"""Reading pictures as people have them, and the one resize rule that training and inference share.

Every mode and orientation becomes [H, W, 3] uint8 RGB.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from ovbridge.errors import DataError
from ovbridge.tar_members import is_there, opened

MAX_PIXELS = 89_478_485
"""Above this a file is refused before it is decoded (Pillow's own limit for decompression bombs)."""

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})
"""What counts as a picture when a folder is listed."""


def read_image(path: str | Path) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Decode one file to [H, W, 3] uint8 RGB, rotated as its EXIF orientation says.

    Grey, palette, CMYK and 16-bit files are converted; transparency is laid over white; of an animation the
    first frame is taken. A part of the path may be a tar archive. Raises DataError if the file is missing, broken,
    truncated or too large.
    """
    path = Path(path)
    if not is_there(path):
        what = "is a folder, not an image" if os.path.isdir(path) else "does not exist"
        raise DataError(f"image {path} {what}: check the path")
    try:
        with Image.open(opened(path)) as image:
            width, height = image.size
            if width * height > MAX_PIXELS:
                raise DataError(
                    f"image {path} is {width}x{height}, more than {MAX_PIXELS // 1_000_000} megapixels: make it smaller"
                )
            return rgb_array(image)
    except DataError:
        raise
    except Image.DecompressionBombError:
        raise DataError(f"image {path} has more than {MAX_PIXELS // 1_000_000} megapixels: make it smaller") from None
    except UnidentifiedImageError:
        raise DataError(f"{path} is not an image that Pillow can read: convert it to JPEG or PNG") from None
    except Exception as error:  # Pillow's decoders raise whatever a damaged file drives them into.
        raise DataError(f"image {path} is damaged ({_one_line(error)}): replace it or remove it") from None


def rgb_array(image: Image.Image) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An open Pillow image as [H, W, 3] uint8 RGB, upright; the image itself is left as it is."""
    upright = ImageOps.exif_transpose(image)
    if upright.mode == "F" or upright.mode.startswith("I"):
        grey = _eight_bits(np.asarray(upright))
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in upright.info:
        layer = upright.convert("RGBA")
        white = Image.new("RGBA", layer.size, (255, 255, 255, 255))
        upright = Image.alpha_composite(white, layer)
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def resized_size(height: int, width: int, *, short_side: int, long_side: int) -> tuple[int, int]:
    """(height, width) after bringing the short side to `short_side`, the long one to `long_side` at most.

    Rounds half up, as Detectron2's ResizeShortestEdge does: a different rounding moves every box.
    """
    scale = short_side / min(height, width)
    scaled_height, scaled_width = (short_side, scale * width) if height < width else (scale * height, short_side)
    if max(scaled_height, scaled_width) > long_side:
        shrink = long_side / max(scaled_height, scaled_width)
        scaled_height, scaled_width = scaled_height * shrink, scaled_width * shrink
    return max(1, int(scaled_height + 0.5)), max(1, int(scaled_width + 0.5))


def resize_pixels(
    pixels_HWC: np.ndarray[Any, np.dtype[np.uint8]], size: tuple[int, int]
) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Antialiased bilinear resize to `size` (height, width), uint8 in and out."""
    if pixels_HWC.shape[:2] == size:
        return pixels_HWC
    resized = Image.fromarray(pixels_HWC).resize((size[1], size[0]), Image.Resampling.BILINEAR)
    return np.array(resized, dtype=np.uint8)


def _eight_bits(grey_HW: np.ndarray[Any, Any]) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Integer or float grey levels to 0..255: values above 255 are read as 16-bit, floats up to 1 as fractions."""
    top = float(np.nanmax(grey_HW)) if grey_HW.size else 0.0
    is_fraction = grey_HW.dtype.kind == "f" and top <= 1.0
    scale = 255.0 if is_fraction else 1.0 / 257.0 if top > 255.0 or grey_HW.dtype == np.uint16 else 1.0
    return np.clip(np.nan_to_num(grey_HW * scale), 0, 255).astype(np.uint8)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
