"""Box arithmetic: deltas, clipping, overlap, and exact suppression that stops as soon as it has enough.

Legend: N, M boxes. Boxes are float [N, 4] xyxy in absolute pixels; deltas are [N, 4] (dx, dy, dw, dh) of
R-CNN (arXiv 1311.2524, appendix C) times a weight each.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torchvision.ops import nms

LOG_SCALE_LIMIT = math.log(1000.0 / 16.0)
"""dw and dh are clamped to this before exp(), so that no box explodes early in training."""

DeltaWeights = tuple[float, float, float, float]


def _centres_and_sizes(boxes: Tensor) -> tuple[Tensor, Tensor]:
    sizes = boxes[..., 2:] - boxes[..., :2]
    return boxes[..., :2] + 0.5 * sizes, sizes


def encode_boxes(reference: Tensor, target: Tensor, weights: DeltaWeights) -> Tensor:
    """Deltas [N, 4] that move `reference` [N, 4] onto `target` [N, 4]; both must be non-empty."""
    centre, size = _centres_and_sizes(reference)
    target_centre, target_size = _centres_and_sizes(target)
    shift = (target_centre - centre) / size
    stretch = torch.log(target_size / size)
    return torch.cat([shift, stretch], dim=-1) * shift.new_tensor(weights)


def decode_boxes(reference: Tensor, deltas: Tensor, weights: DeltaWeights) -> Tensor:
    """Inverse of `encode_boxes`, in float32 at least; the result is not clipped."""
    reference, deltas = reference.float(), deltas.float()
    centre, size = _centres_and_sizes(reference)
    scaled = deltas / deltas.new_tensor(weights)
    new_centre = scaled[..., :2] * size + centre
    half = 0.5 * torch.exp(scaled[..., 2:].clamp(max=LOG_SCALE_LIMIT)) * size
    return torch.cat([new_centre - half, new_centre + half], dim=-1)


def clip_boxes(boxes: Tensor, image_hw: tuple[int, int]) -> Tensor:
    """`boxes` limited to an image of height and width `image_hw`."""
    height, width = image_hw
    limit = boxes.new_tensor([width, height, width, height])
    return torch.minimum(boxes.clamp(min=0), limit)


def nonempty(boxes: Tensor) -> Tensor:
    """[N] bool: positive width and height."""
    return (boxes[..., 2] > boxes[..., 0]) & (boxes[..., 3] > boxes[..., 1])


def pairwise_iou(first: Tensor, second: Tensor) -> Tensor:
    """Intersection over union [N, M]; 0 where two boxes do not meet, also for empty ones."""
    low = torch.maximum(first[:, None, :2], second[None, :, :2])
    high = torch.minimum(first[:, None, 2:], second[None, :, 2:])
    intersection = (high - low).clamp(min=0).prod(dim=2)
    area_first = (first[:, 2:] - first[:, :2]).prod(dim=1)
    area_second = (second[:, 2:] - second[:, :2]).prod(dim=1)
    union = area_first[:, None] + area_second[None, :] - intersection
    return torch.where(intersection > 0, intersection / union, torch.zeros_like(union))


def suppress_sorted(boxes: Tensor, groups: Tensor, iou_threshold: float, limit: int) -> Tensor:
    """The first `limit` survivors of greedy suppression within groups, as ascending positions [<= limit].

    `boxes` [N, 4] must be best first; `groups` [N] int64 >= 0 (a class, a level). Whether a box survives
    depends only on better boxes of its group, so the survivors of a prefix are a prefix of the survivors:
    prefixes of growing length are tried until one holds `limit`.
    """
    n = len(boxes)
    # Groups are moved apart so that one call serves all. Float64: at 1,203 groups float32 would lose pixels.
    shift = groups.double() * (boxes.amax().double() + 1.0 if n else 0.0)
    apart = boxes.double() + shift[:, None]
    ranks = torch.arange(n, 0, -1, dtype=torch.float64, device=boxes.device)
    length = min(n, 2 * limit)
    while True:
        kept: Tensor = nms(apart[:length], ranks[:length], iou_threshold)
        if len(kept) >= limit or length == n:
            return kept[:limit]
        length = min(n, 2 * length)
