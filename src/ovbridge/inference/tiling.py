"""Large pictures in overlapping tiles, so that small things keep their pixels.

Legend: N detections. A thing that a tile's border cuts is seen whole in the neighbouring tile if it is no larger than
the overlap; its cut part is dropped then. The whole picture is looked at once as well, for things larger than a tile.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torchvision.ops import batched_nms

from ovbridge.errors import ConfigError
from ovbridge.structures import Detections

MERGE_IOU = 0.5
"""Two boxes of one class that overlap by more are the same thing."""
CUT_SHARE = 0.7
"""A box at a border inside the picture is a cut part if this share of it lies in a box that is not cut."""
BORDER_PIXELS = 2.0
"""A box that ends this close to a border of its tile counts as cut by it."""


@dataclass(frozen=True, kw_only=True)
class Tiling:
    """How a picture is divided."""

    size: int
    """Side of a tile in pixels of the picture."""
    overlap: float = 0.2
    """Share of a tile that it has in common with its neighbour, in [0, 0.9]."""

    def __post_init__(self) -> None:
        if self.size < 16:
            raise ConfigError(f"tiles of {self.size} pixels are too small: give at least 16")
        if not 0.0 <= self.overlap <= 0.9:
            raise ConfigError(f"an overlap of {self.overlap} does not fit: give a share from 0 to 0.9")

    def boxes(self, height: int, width: int) -> list[tuple[int, int, int, int]]:
        """(x1, y1, x2, y2) of every tile, all of full size where the picture allows it; the picture itself if small."""
        rows, columns = self._starts(height), self._starts(width)
        return [
            (left, top, min(left + self.size, width), min(top + self.size, height)) for top in rows for left in columns
        ]

    def _starts(self, length: int) -> list[int]:
        if length <= self.size:
            return [0]
        step = max(1, int(self.size * (1.0 - self.overlap)))
        starts = list(range(0, length - self.size, step))
        return [*starts, length - self.size]


def merge_tiles(
    parts: Sequence[Detections],
    tiles: Sequence[tuple[int, int, int, int]],
    image_hw: tuple[int, int],
    *,
    max_detections: int,
) -> Detections:
    """Detections of each tile (in its pixels) as those of the picture, without parts that a border cut off.

    Masks come out at the size of the picture.
    """
    height, width = image_hw
    boxes = torch.cat(
        [p.boxes_xyxy + p.boxes_xyxy.new_tensor([t[0], t[1]] * 2) for p, t in zip(parts, tiles, strict=True)]
    )
    scores, classes = torch.cat([p.scores for p in parts]), torch.cat([p.class_ids for p in parts])
    cut = torch.cat([_cut(p.boxes_xyxy, t, (height, width)) for p, t in zip(parts, tiles, strict=True)])
    kept = (~_parts_of_others(boxes, classes, cut)).nonzero().flatten()
    kept = kept[batched_nms(boxes[kept], scores[kept], classes[kept], MERGE_IOU)][:max_detections]
    masks = None
    if parts and parts[0].masks is not None:
        masks = _placed_masks(parts, tiles, image_hw, kept)
    return Detections(
        boxes_xyxy=boxes[kept], scores=scores[kept], class_ids=classes[kept], names=parts[0].names, masks=masks
    )


def _cut(boxes: Tensor, tile: tuple[int, int, int, int], image_hw: tuple[int, int]) -> Tensor:
    """[N] bool: the box ends at a border of its tile that is no border of the picture."""
    left, top, right, bottom = tile
    inner = [left > 0, top > 0, right < image_hw[1], bottom < image_hw[0]]
    distance = torch.stack(
        [boxes[:, 0], boxes[:, 1], (right - left) - boxes[:, 2], (bottom - top) - boxes[:, 3]], dim=1
    )
    return ((distance <= BORDER_PIXELS) & torch.tensor(inner)).any(dim=1)


def _parts_of_others(boxes: Tensor, classes: Tensor, cut: Tensor) -> Tensor:
    """[N] bool: cut boxes that lie mostly inside an uncut box of their class, whatever the scores."""
    result = torch.zeros_like(cut)
    whole = (~cut).nonzero().flatten()
    for i in cut.nonzero().flatten().tolist():
        same = whole[classes[whole] == classes[i]]
        low = torch.maximum(boxes[same, :2], boxes[i, :2])
        high = torch.minimum(boxes[same, 2:], boxes[i, 2:])
        inside = (high - low).clamp(min=0).prod(dim=1) / (boxes[i, 2:] - boxes[i, :2]).prod().clamp(min=1e-6)
        result[i] = bool((inside >= CUT_SHARE).any())
    return result


def _placed_masks(
    parts: Sequence[Detections], tiles: Sequence[tuple[int, int, int, int]], image_hw: tuple[int, int], kept: Tensor
) -> Tensor:
    """[N, H, W] masks of the kept detections; only they are ever made at the size of the picture."""
    owners = [(part, i) for part in range(len(parts)) for i in range(len(parts[part]))]
    placed = torch.zeros((len(kept), *image_hw), dtype=torch.bool)
    for row, position in enumerate(kept.tolist()):
        part, i = owners[position]
        masks = parts[part].masks
        assert masks is not None
        left, top, right, bottom = tiles[part]
        placed[row, top:bottom, left:right] = masks[i]
    return placed
