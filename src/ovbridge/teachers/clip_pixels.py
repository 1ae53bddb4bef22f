"""What an image tower is shown of a crop: a square of its input size, cut and normalised as its weights expect.

The rules are those of `open_clip.image_transform` when it evaluates, which every model of open_clip names in its
`preprocess_cfg`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
from PIL import Image

from ovbridge.errors import TeacherError

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """From an RGB crop to the input of an image tower; by default CLIP's own."""

    mean: tuple[float, ...] = CLIP_MEAN
    """Of each channel, of pixels in [0, 1]."""
    std: tuple[float, ...] = CLIP_STD
    """Of each channel, of pixels in [0, 1]."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """How pixels are resampled."""
    resize: Literal["shortest", "squash"] = "shortest"
    """shortest: the short side becomes the input size and the centre square is cut out; squash: both sides do."""

    @classmethod
    def of(cls, model: Any, name: str) -> Preprocessing:
        """That of an open_clip model; raises TeacherError where its images are prepared in a way we do not know."""
        config: Mapping[str, Any] = getattr(model.visual, "preprocess_cfg", None) or {}
        resize = config.get("resize_mode") or "shortest"
        size = model.visual.image_size
        if resize not in ("shortest", "squash") or (isinstance(size, tuple | list) and len(set(size)) > 1):
            raise TeacherError(
                f"CLIP {name} is shown images of size {size}, resized by {resize!r}: use one with a square input that "
                "is resized by 'shortest' or 'squash'"
            )
        return cls(
            mean=tuple(config.get("mean") or CLIP_MEAN),
            std=tuple(config.get("std") or CLIP_STD),
            # As open_clip does: whatever else is named is for training.
            interpolation="bilinear" if config.get("interpolation") == "bilinear" else "bicubic",
            resize="squash" if resize == "squash" else "shortest",
        )

    def departures(self) -> dict[str, Any]:
        """What is not as in CLIP's own."""
        usual = asdict(Preprocessing())
        return {key: value for key, value in asdict(self).items() if value != usual[key]}

    def square(self, crop_HW3: np.ndarray, size: int) -> np.ndarray:
        """[size, size, 3] uint8 of an RGB crop [H, W, 3] uint8.

        By `shortest` long thin crops lose their ends, as in the paper's teacher (PAPER §1.2 row 6).
        """
        height, width = crop_HW3.shape[:2]
        box: tuple[float, float, float, float] | None = None
        if self.resize == "shortest":
            # torchvision cuts the long side down to whole pixels, so the two sides have a scale each.
            resized_w, resized_h = (int(size * side / min(height, width)) for side in (width, height))
            left, top = round((resized_w - size) / 2), round((resized_h - size) / 2)
            per_x, per_y = width / resized_w, height / resized_h
            # Only the part that the centre square shows is resampled: a 2000:1 crop would else need gigabytes.
            right, bottom = min((left + size) * per_x, width), min((top + size) * per_y, height)
            box = (left * per_x, top * per_y, right, bottom)
        image = Image.fromarray(np.ascontiguousarray(crop_HW3))
        resample = Image.Resampling[self.interpolation.upper()]
        return np.asarray(image.resize((size, size), resample, box=box))
