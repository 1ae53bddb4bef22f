"""How many objects a proposer's first k boxes find."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchvision.ops import box_iou


def recall_at(proposals: Sequence[Tensor], ground_truth: Sequence[Tensor], k: int, iou: float = 0.5) -> float:
    """Share of ground-truth boxes found by the k best proposals of their image, in [0, 1]; NaN without boxes.

    One proposal finds one object: proposals, best first, each take the free box of highest IoU, as in COCO's
    average recall.

    Args:
        proposals: For each image [P, 4] xyxy, best first.
        ground_truth: For each image [N, 4] xyxy in the same pixels.
        k: Proposals used of each image.
        iou: Overlap from which a box counts as found.
    """
    if len(proposals) != len(ground_truth):
        raise ValueError(f"proposals of {len(proposals)} images for ground truth of {len(ground_truth)}")
    total = sum(len(boxes) for boxes in ground_truth)
    found = sum(_found(p[:k], g, iou) for p, g in zip(proposals, ground_truth, strict=True))
    return found / total if total else float("nan")


def _found(proposals: Tensor, boxes: Tensor, iou: float) -> int:
    if not len(proposals) or not len(boxes):
        return 0
    overlap = box_iou(proposals.double(), boxes.double())
    free = torch.ones(len(boxes), dtype=torch.bool)
    for row in overlap:
        best = int(torch.where(free, row, -1.0).argmax())
        if free[best] and row[best] >= iou:
            free[best] = False
    return int((~free).sum())
