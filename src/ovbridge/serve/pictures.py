"""From untrusted bytes to pixels: the size is known and checked before anything is decoded."""

from __future__ import annotations

import io
import threading
from typing import Any

import numpy as np
from PIL import Image

from ovbridge.errors import DataError
from ovbridge.images import rgb_array
from ovbridge.serve.failures import RequestError, unprocessable

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
"""What is accepted. Formats that can start programs or read other files (EPS, for one) are not."""

LARGE_PIXELS = 4_000_000
"""Larger pictures are decoded one at a time: a decoder needs several times the pixels' memory."""

_one_large = threading.Lock()


def decode(content: bytes, max_pixels: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """[H, W, 3] uint8 RGB, upright.

    Raises RequestError: 413 for too many pixels, 422 for bytes that are no picture.
    """
    if not content:
        raise unprocessable("no_image", "the picture is empty: upload a JPEG, PNG, WebP, GIF, BMP or TIFF file")
    try:
        with Image.open(io.BytesIO(content), formats=FORMATS) as image:
            width, height = image.size
            if width * height > max_pixels:
                raise _too_many_pixels(width, height, max_pixels)
            if width * height > LARGE_PIXELS:
                with _one_large:
                    return rgb_array(image)
            return rgb_array(image)
    except RequestError:
        raise
    except Image.DecompressionBombError:
        raise RequestError(
            413, "too_many_pixels", f"the picture has more than {max_pixels / 1e6:g} megapixels: make it smaller"
        ) from None
    except DataError as error:
        raise unprocessable("bad_image", str(error)) from None
    except MemoryError:
        raise
    except Exception:  # Pillow's decoders raise whatever damaged bytes drive them into.
        raise unprocessable(
            "bad_image", "the upload is not a whole picture: send a JPEG, PNG, WebP, GIF, BMP or TIFF file"
        ) from None


def _too_many_pixels(width: int, height: int, limit: int) -> RequestError:
    return RequestError(
        413,
        "too_many_pixels",
        f"the picture is {width}x{height}, more than {limit / 1e6:g} megapixels: make it smaller",
    )
