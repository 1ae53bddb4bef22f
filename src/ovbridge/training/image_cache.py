"""Decoded and resized images kept in memory: the samples that come from disk, at the cost of a flip.

Pays where the resized set fits: 1,000 images of 171x128 are 66 MB. Pixels are the same bit for bit, boxes to the
rounding of float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ovbridge.data.transforms import TrainTransform
from ovbridge.detector.boxes import nonempty
from ovbridge.errors import ConfigError
from ovbridge.structures import TrainingImage


class ImageSource(Protocol):
    """What is cached: a data set whose samples are drawn with a generator."""

    is_wide: np.ndarray[Any, Any]

    @property
    def images(self) -> Sequence[Any]:
        """The images that can be drawn."""
        ...

    def __len__(self) -> int:
        """Number of images."""
        ...

    def sample(self, index: int, generator: torch.Generator) -> TrainingImage:
        """One transformed image."""
        ...


class CachedImages:
    """A data set behind a memory cache. `source` must resize only: flip and jitter happen here, after the cache.

    Draws from the generator what `transform` would, in its order, so that caching changes neither sizes nor flips.
    """

    def __init__(self, source: ImageSource, transform: TrainTransform) -> None:
        if len(transform.short_sides) != 1:
            raise ConfigError("images of several sizes cannot be cached: set data.cache_in_memory=false")
        self._source, self._transform = source, transform
        self._kept: dict[int, TrainingImage] = {}
        self.images, self.is_wide = source.images, source.is_wide

    def __len__(self) -> int:
        return len(self._source)

    def repeat_factors(self, threshold: float) -> np.ndarray[Any, Any]:
        """[n] repeat factors of the images."""
        factors: np.ndarray[Any, Any] = self._source.repeat_factors(threshold)  # type: ignore[attr-defined]
        return factors

    def sample(self, index: int, generator: torch.Generator) -> TrainingImage:
        """One image: resized as it was the first time, flipped and jittered anew."""
        resized = self._kept.get(index)
        if resized is None:
            resized = self._kept[index] = self._source.sample(index, torch.Generator())
        torch.randint(1, (1,), generator=generator)  # the draw of the size
        flipped = bool(torch.rand(1, generator=generator) < self._transform.flip_probability)
        pixels = resized.pixels.flip(2) if flipped else resized.pixels
        if self._transform.jitter is not None:
            jittered = self._transform.jitter(np.ascontiguousarray(pixels.permute(1, 2, 0).numpy()), generator)
            pixels = torch.from_numpy(np.ascontiguousarray(jittered.transpose(2, 0, 1)))
        drawn = flipped_labels(resized) if flipped else resized
        return replace(drawn, pixels=pixels.contiguous())


def flipped_labels(image: TrainingImage) -> TrainingImage:
    """`image` with every box and mask mirrored left to right; the pixels are left as they are.

    Boxes whose width the rounding takes are dropped with their rows, as `TrainTransform` does.
    """
    width = image.pixels.shape[2]
    boxes, labels, regions = image.boxes, image.labels, image.regions
    if boxes is not None:
        mirrored, keep = _mirrored(boxes.boxes_xyxy, width)
        masks = None if boxes.masks is None else boxes.masks[keep].flip(2)
        boxes = replace(boxes, boxes_xyxy=mirrored, class_ids=boxes.class_ids[keep], masks=masks)
    if labels is not None:
        mirrored, keep = _mirrored(labels.boxes_xyxy, width)
        labels = replace(labels, boxes_xyxy=mirrored, class_ids=labels.class_ids[keep], scores=labels.scores[keep])
    if regions is not None:
        mirrored, keep = _mirrored(regions.boxes_xyxy, width)
        regions = replace(
            regions, boxes_xyxy=mirrored, embeddings=regions.embeddings[keep], scores=regions.scores[keep]
        )
    return replace(image, boxes=boxes, labels=labels, regions=regions)


def _mirrored(boxes_xyxy: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """The mirrored boxes that have an area [M, 4], and which of the given ones they are [N] bool."""
    x1, y1, x2, y2 = boxes_xyxy.unbind(dim=1)
    mirrored = torch.stack([width - x2, y1, width - x1, y2], dim=1)
    keep = nonempty(mirrored)
    return mirrored[keep], keep
