"""One geometric change for pixels and everything that is drawn on them: resize, flip, then colour jitter.

Legend: H x W pixels, N boxes. Boxes are xyxy in absolute pixels, of the original image coming in and of
the returned pixels going out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor

from ovbridge.errors import ConfigError
from ovbridge.images import resize_pixels, resized_size
from ovbridge.ranges import COUNT, NOT_NEGATIVE, SHARE, require_ranges
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage


@dataclass(frozen=True, kw_only=True)
class PhotometricJitter:
    """Random brightness, contrast and saturation, each by a factor in [1 - strength, 1 + strength]."""

    brightness: float = 0.2
    """Strength in [0, 1]; 0 switches it off."""
    contrast: float = 0.2
    """Strength in [0, 1]; 0 switches it off."""
    saturation: float = 0.2
    """Strength in [0, 1]; 0 switches it off."""

    def __post_init__(self) -> None:
        require_ranges(self, "", brightness=SHARE, contrast=SHARE, saturation=SHARE)

    def __call__(self, pixels_HW3: np.ndarray, generator: torch.Generator) -> np.ndarray:
        """[H, W, 3] uint8 in and out; draws three numbers whatever the strengths are."""
        draws = (torch.rand(3, generator=generator) * 2 - 1).tolist()
        image = Image.fromarray(pixels_HW3)
        steps = (
            (ImageEnhance.Brightness, self.brightness),
            (ImageEnhance.Contrast, self.contrast),
            (ImageEnhance.Color, self.saturation),
        )
        for (enhancer, strength), draw in zip(steps, draws, strict=True):
            if strength:
                image = enhancer(image).enhance(1 + strength * draw)
        return np.asarray(image)


@dataclass(frozen=True, kw_only=True)
class TrainTransform:
    """What happens to an image between disk and detector."""

    short_sides: tuple[int, ...] = (800,)
    """Lengths of the shorter side in pixels, one drawn per image; the paper's 8x schedule has 128, 160, …, 1280."""
    max_long_side: int = 1333
    """Upper bound of the longer side in pixels."""
    flip_probability: float = 0.5
    """Chance of a left-right flip."""
    jitter: PhotometricJitter | None = None
    """Colour jitter after the flip; the paper uses none."""
    versions: int = 0
    """Every image has so many versions, always the same ones, and one is drawn: what is frozen can be computed once for
    each. 0 makes a new one every time."""
    truncate_pseudo_boxes: bool = True
    """Cut region and pseudo boxes to whole pixels after resizing, as the official loader does."""

    def __post_init__(self) -> None:
        require_ranges(self, "", short_sides=COUNT, max_long_side=COUNT, flip_probability=SHARE, versions=NOT_NEGATIVE)
        if not self.short_sides:
            raise ConfigError("short_sides is empty: give at least one length in pixels")

    def __call__(
        self,
        pixels_HW3: np.ndarray,
        *,
        image_id: int,
        generator: torch.Generator,
        boxes: BoxLabels | None = None,
        labels: ImageLabels | None = None,
        regions: RegionTargets | None = None,
    ) -> TrainingImage:
        """Transform one image with whatever it carries; boxes left without area are dropped with their rows.

        Args:
            pixels_HW3: [H, W, 3] uint8 RGB.
            image_id: Copied to the result.
            generator: The only source of randomness.
            boxes: Human boxes (kept at fractions of a pixel).
            labels: One pseudo box a label.
            regions: Proposals with CLIP embeddings.
        """
        if self.versions:
            version = int(torch.randint(self.versions, (1,), generator=generator))
            generator = torch.Generator().manual_seed(image_id * self.versions + version)
        height, width = pixels_HW3.shape[:2]
        choice = int(torch.randint(len(self.short_sides), (1,), generator=generator))
        flipped = bool(torch.rand(1, generator=generator) < self.flip_probability)
        size = resized_size(height, width, short_side=self.short_sides[choice], long_side=self.max_long_side)
        new_h, new_w = max(size[0], 1), max(size[1], 1)
        pixels = resize_pixels(pixels_HW3, (new_h, new_w))
        if flipped:
            pixels = pixels[:, ::-1]
        if self.jitter is not None:
            pixels = self.jitter(np.ascontiguousarray(pixels), generator)
        change = _BoxChange(scale_x=new_w / width, scale_y=new_h / height, height=new_h, width=new_w, flipped=flipped)
        whole = self.truncate_pseudo_boxes
        return TrainingImage(
            image_id=image_id,
            pixels=torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))),
            boxes=None if boxes is None else _change_human_boxes(boxes, change),
            labels=None if labels is None else _change_pseudo_boxes(labels, change, whole),
            regions=None if regions is None else _change_regions(regions, change, whole),
        )


@dataclass(frozen=True, kw_only=True)
class _BoxChange:
    scale_x: float
    scale_y: float
    height: int
    width: int
    flipped: bool

    def boxes(self, boxes_xyxy: Tensor, *, whole_pixels: bool) -> Tensor:
        """[N, 4] float32: scaled, optionally truncated, flipped, clipped, in this order."""
        # float64: in float32 60 * (800 / 480) may fall just below 100 and be truncated to 99.
        scale = torch.tensor([self.scale_x, self.scale_y, self.scale_x, self.scale_y], dtype=torch.float64)
        boxes = boxes_xyxy.double() * scale
        if whole_pixels:
            boxes = boxes.trunc()
        if self.flipped:
            x1, y1, x2, y2 = boxes.unbind(dim=1)
            boxes = torch.stack([self.width - x2, y1, self.width - x1, y2], dim=1)
        limit = torch.tensor([self.width, self.height, self.width, self.height], dtype=torch.float64)
        return torch.minimum(boxes.clamp(min=0), limit).float()

    def masks(self, masks: Tensor) -> Tensor:
        """[N, H', W'] bool: antialiased, cut at one half."""
        resized = [
            np.asarray(Image.fromarray(m).resize((self.width, self.height), Image.Resampling.BILINEAR)) >= 128
            for m in masks.numpy().astype(np.uint8) * 255
        ]
        out = torch.from_numpy(np.array(resized, dtype=bool).reshape(-1, self.height, self.width))
        return out.flip(2) if self.flipped else out


def _with_area(boxes_xyxy: Tensor) -> Tensor:
    return (boxes_xyxy[:, 2] > boxes_xyxy[:, 0]) & (boxes_xyxy[:, 3] > boxes_xyxy[:, 1])


def _change_human_boxes(boxes: BoxLabels, change: _BoxChange) -> BoxLabels:
    moved = change.boxes(boxes.boxes_xyxy, whole_pixels=False)
    keep = _with_area(moved)
    return BoxLabels(
        boxes_xyxy=moved[keep],
        class_ids=boxes.class_ids[keep],
        masks=None if boxes.masks is None else change.masks(boxes.masks[keep]),
    )


def _change_pseudo_boxes(labels: ImageLabels, change: _BoxChange, whole_pixels: bool) -> ImageLabels:
    moved = change.boxes(labels.boxes_xyxy, whole_pixels=whole_pixels)
    keep = _with_area(moved)
    return replace(labels, boxes_xyxy=moved[keep], class_ids=labels.class_ids[keep], scores=labels.scores[keep])


def _change_regions(regions: RegionTargets, change: _BoxChange, whole_pixels: bool) -> RegionTargets:
    moved = change.boxes(regions.boxes_xyxy, whole_pixels=whole_pixels)
    keep = _with_area(moved)
    return replace(regions, boxes_xyxy=moved[keep], embeddings=regions.embeddings[keep], scores=regions.scores[keep])
