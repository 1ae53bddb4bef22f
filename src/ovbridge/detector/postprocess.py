"""From logits to final detections, exactly as threshold - NMS per class - top-k would give them, but selecting first.

Legend: R regions, K classes, D embedding. With 1,203 classes nearly every (region, class) pair passes the
threshold of the LVIS protocol; only the best few thousand can matter, and only they are decoded and suppressed.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ovbridge.detector.boxes import clip_boxes, nonempty, suppress_sorted
from ovbridge.detector.config import PostprocessConfig
from ovbridge.detector.mask_head import paste_masks
from ovbridge.detector.products import linear

COLUMNS_AT_ONCE = 2048
"""Classes scored in one product: bounds memory at any vocabulary size."""

LEADING_REGIONS = 64
"""Regions of an image that mixed precision computes in fp32 again: three times the twenty best detections."""


@dataclass(frozen=True, kw_only=True)
class RawDetections:
    """Detections of one image, best first, in the pixels of the image that the network was given."""

    boxes_xyxy: Tensor
    """[N, 4] clipped to the image."""
    scores: Tensor
    """[N] in [0, 1]."""
    class_ids: Tensor
    """[N] int64."""
    mask_probabilities: Tensor | None = None
    """[N, S, S] in [0, 1] over each box, or None without a mask head."""
    masks: Tensor | None = None
    """[N, H, W] bool, after `to_original_size` only."""


@dataclass(frozen=True, kw_only=True)
class RowClasses:
    """What the rows of a text bank mean where several of them (synonyms, examples) stand for one class.

    A region's score of a class is then its best over the class's rows, since NMS drops the others.
    """

    class_ids_K: Tensor  # noqa: N815 - dense-maths suffix
    """[K] int64, the class of each row."""
    thresholds_K: Tensor  # noqa: N815 - dense-maths suffix
    """[K] float in [0, 1]: only scores above it count, on top of the threshold of the call."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The best (region, class) pairs, by falling score; ties in order of region, then class."""

    scores: Tensor
    """[N]"""
    regions: Tensor
    """[N] int64"""
    class_ids: Tensor
    """[N] int64"""
    complete: bool
    """True if there are no more above the threshold."""

    def in_classes(self, rows: RowClasses) -> Candidates:
        """Those above the threshold of their row, with the class of the row for the row."""
        kept = self.scores > rows.thresholds_K[self.class_ids]
        return replace(
            self,
            scores=self.scores[kept],
            regions=self.regions[kept],
            class_ids=rows.class_ids_K[self.class_ids[kept]],
        )


def best_candidates(
    query_RD: Tensor, text_KD: Tensor, bias: Tensor | None, usable_R: Tensor, *, threshold: float, count: int
) -> Candidates:
    """The `count` best pairs with sigmoid(query . text + bias) > threshold, never holding more than
    R * COLUMNS_AT_ONCE logits. `usable_R` [R] bool leaves regions out."""
    num_classes = len(text_KD)
    scores = query_RD.new_zeros(0)
    flat = torch.zeros(0, dtype=torch.int64, device=query_RD.device)
    cut = False
    for start in range(0, num_classes, COLUMNS_AT_ONCE):
        logits = linear(query_RD, text_KD[start : start + COLUMNS_AT_ONCE])
        chunk = torch.sigmoid(logits if bias is None else logits + bias)
        chunk = torch.where(usable_R[:, None], chunk, -1.0)
        width = chunk.shape[1]
        best, index = chunk.flatten().topk(min(count + 1, chunk.numel()))
        passed = best > threshold
        best, index = best[passed], index[passed]
        scores = torch.cat([scores, best])
        flat = torch.cat([flat, index // width * num_classes + start + index % width])
        if len(scores) > count:
            scores, kept = scores.topk(count + 1)
            flat, cut = flat[kept], True
    if cut:
        # Of equal scores at the cut an arbitrary few were kept: leave all of them to the next, longer round.
        certain = scores > scores.min()
        scores, flat = scores[certain], flat[certain]
    flat, order = flat.sort()
    scores, order = scores[order].sort(descending=True, stable=True)
    flat = flat[order]
    return Candidates(scores=scores, regions=flat // num_classes, class_ids=flat % num_classes, complete=not cut)


def leading_regions(query_RD: Tensor, text_KD: Tensor) -> Tensor:
    """Index [N] of the regions of one image that match any class best, at most `LEADING_REGIONS`.

    Those that NMS would drop are among them: of two that hardly differ it is not yet certain which one it keeps.
    """
    best_R = query_RD.new_full((len(query_RD),), -torch.inf)
    for start in range(0, len(text_KD), COLUMNS_AT_ONCE):
        best_R = torch.maximum(best_R, linear(query_RD, text_KD[start : start + COLUMNS_AT_ONCE]).amax(dim=1))
    return best_R.nan_to_num(nan=-torch.inf).topk(min(LEADING_REGIONS, len(best_R))).indices


def select_detections(
    boxes_R4: Tensor,
    query_RD: Tensor,
    text_KD: Tensor,
    bias: Tensor | None,
    image_hw: tuple[int, int],
    config: PostprocessConfig,
    rows: RowClasses | None = None,
) -> RawDetections:
    """The detections of one image; the rows of `text_KD` are the classes unless `rows` says otherwise.

    Exact: NMS per class looks at better candidates only, so the survivors among the best pairs are the best
    survivors; where they are too few, more pairs are taken.
    """
    usable_R = torch.isfinite(boxes_R4).all(dim=1) & torch.isfinite(query_RD).all(dim=1)
    boxes_R4 = clip_boxes(boxes_R4, image_hw)
    count = 16 * config.max_detections
    while True:
        found = best_candidates(query_RD, text_KD, bias, usable_R, threshold=config.score_threshold, count=count)
        if rows is not None:
            found = found.in_classes(rows)
        boxes = boxes_R4[found.regions]
        kept = suppress_sorted(boxes, found.class_ids, config.nms_iou, config.max_detections)
        if found.complete or len(kept) >= config.max_detections:
            break
        count *= 8
    return RawDetections(boxes_xyxy=boxes[kept], scores=found.scores[kept], class_ids=found.class_ids[kept])


def to_original_size(
    detections: RawDetections, network_hw: tuple[int, int], original_hw: tuple[int, int]
) -> RawDetections:
    """Detections in the pixels of the original image; boxes that vanish there are dropped, masks are pasted."""
    scale_y, scale_x = original_hw[0] / network_hw[0], original_hw[1] / network_hw[1]
    boxes = detections.boxes_xyxy
    boxes = clip_boxes(boxes * boxes.new_tensor([scale_x, scale_y, scale_x, scale_y]), original_hw)
    kept = nonempty(boxes)
    probabilities = detections.mask_probabilities
    masks = None if probabilities is None else paste_masks(probabilities[kept], boxes[kept], original_hw)
    return replace(
        detections,
        boxes_xyxy=boxes[kept],
        scores=detections.scores[kept],
        class_ids=detections.class_ids[kept],
        mask_probabilities=None if probabilities is None else probabilities[kept],
        masks=masks,
    )
