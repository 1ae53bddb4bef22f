"""Which anchors and proposals enter a training loss: matching to true boxes, then balanced sampling.

Legend: N anchors or proposals, M true boxes. Semantics of Faster R-CNN as Detectron2 computes it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ovbridge.detector.boxes import pairwise_iou

POSITIVE, NEGATIVE, IGNORED = 1, 0, -1

Choose = Callable[[int, int, torch.Generator | None], Tensor]
"""(n, k, generator) → [k] distinct int64 positions in 0..n-1."""


def random_choice(n: int, k: int, generator: torch.Generator | None) -> Tensor:
    """A uniformly random subset of size k."""
    return torch.randperm(n, generator=generator)[:k]


def match(iou_MN: Tensor, low: float, high: float, *, rescue: bool) -> tuple[Tensor, Tensor]:
    """Best true box [N] int64 and label [N] (POSITIVE from `high` on, NEGATIVE below `low`, else IGNORED).

    `rescue`: the best anchors of a true box are positive however low their overlap (Faster R-CNN, 3.1.2 i); as in
    Detectron2 that is every anchor for a box that meets none, so boxes without area must not come here.
    """
    if len(iou_MN) == 0:
        zeros = torch.zeros(iou_MN.shape[1], dtype=torch.int64, device=iou_MN.device)
        return zeros, zeros.clone()
    best_N, matched_N = iou_MN.max(dim=0)
    labels_N = torch.full_like(matched_N, IGNORED)
    labels_N[best_N < low] = NEGATIVE
    labels_N[best_N >= high] = POSITIVE
    if rescue:
        best_M = iou_MN.amax(dim=1, keepdim=True)
        labels_N[(iou_MN == best_M).any(dim=0)] = POSITIVE
    return matched_N, labels_N


def sample_balanced(
    positive_N: Tensor,
    negative_N: Tensor,
    count: int,
    positive_fraction: float,
    *,
    choose: Choose,
    generator: torch.Generator | None,
) -> tuple[Tensor, Tensor]:
    """Positions of at most `count * positive_fraction` positives and of negatives that fill up to `count`."""
    positive, negative = positive_N.nonzero().flatten(), negative_N.nonzero().flatten()
    wanted = min(int(count * positive_fraction), len(positive))
    rest = min(count - wanted, len(negative))
    chosen_positive = choose(len(positive), wanted, generator).to(positive.device)
    chosen_negative = choose(len(negative), rest, generator).to(negative.device)
    return positive[chosen_positive], negative[chosen_negative]


@dataclass(frozen=True, kw_only=True)
class AnchorTargets:
    """Labels of the anchors of one image."""

    labels: Tensor
    """[N] int64: POSITIVE or NEGATIVE for the sampled ones, IGNORED for the rest."""
    boxes_xyxy: Tensor
    """[P, 4]: the true box of each positive anchor, ascending."""


def sample_anchors(
    anchors_N4: Tensor,
    true_boxes_M4: Tensor,
    *,
    iou_thresholds: tuple[float, float],
    count: int,
    positive_fraction: float,
    choose: Choose = random_choice,
    generator: torch.Generator | None = None,
) -> AnchorTargets:
    """Match the anchors of one image to its true boxes and sample `count` of them."""
    low, high = iou_thresholds
    matched_N, matched_labels_N = match(pairwise_iou(true_boxes_M4, anchors_N4), low, high, rescue=True)
    positive, negative = sample_balanced(
        matched_labels_N == POSITIVE,
        matched_labels_N == NEGATIVE,
        count,
        positive_fraction,
        choose=choose,
        generator=generator,
    )
    labels_N = torch.full_like(matched_labels_N, IGNORED)
    labels_N[positive] = POSITIVE
    labels_N[negative] = NEGATIVE
    return AnchorTargets(labels=labels_N, boxes_xyxy=true_boxes_M4[matched_N[labels_N == POSITIVE]])


@dataclass(frozen=True, kw_only=True)
class SampledRegions:
    """Regions of one image that the RoI head trains on, foreground first."""

    boxes_xyxy: Tensor
    """[R, 4] proposals in pixels of the network's input image."""
    class_ids: Tensor
    """[R] int64 columns of the vocabulary; K, the number of classes, is background."""
    true_boxes_xyxy: Tensor
    """[R, 4] the best true box; meaningless for background."""
    true_indices: Tensor
    """[R] int64 index of that box in the image's labels; meaningless for background."""

    def __len__(self) -> int:
        return len(self.boxes_xyxy)


def sample_regions(
    proposals_N4: Tensor,
    true_boxes_M4: Tensor,
    true_class_ids_M: Tensor,
    *,
    num_classes: int,
    foreground_iou: float,
    count: int,
    foreground_fraction: float,
    choose: Choose = random_choice,
    generator: torch.Generator | None = None,
) -> SampledRegions:
    """Match proposals (the true boxes join them) and sample `count`, foreground first."""
    boxes = torch.cat([proposals_N4, true_boxes_M4])
    matched, labels = match(pairwise_iou(true_boxes_M4, boxes), foreground_iou, foreground_iou, rescue=False)
    foreground, background = sample_balanced(
        labels == POSITIVE, labels == NEGATIVE, count, foreground_fraction, choose=choose, generator=generator
    )
    index = torch.cat([foreground, background])
    class_ids = torch.full_like(index, num_classes)
    class_ids[: len(foreground)] = true_class_ids_M[matched[foreground]]
    true_indices = matched[index]
    true_boxes = true_boxes_M4[true_indices] if len(true_boxes_M4) else boxes[index]
    return SampledRegions(
        boxes_xyxy=boxes[index], class_ids=class_ids, true_boxes_xyxy=true_boxes, true_indices=true_indices
    )
