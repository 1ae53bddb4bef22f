"""Stored regions that CLIP names surely, taken as boxes of classes that have labels but no boxes.

A picture with boxes of some classes shows things of others too. The distillation regions of such a picture were found
without names and carry CLIP's embeddings; where CLIP is sure of a name and no true box explains the region, it becomes
a pseudo box of that class: its own positives, its own near misses, and box regression (pseudo labels of VL-PLM,
arXiv 2207.08954, on the proposals of arXiv 2207.03482). Names must be known in training, so this is no strict protocol.
Legend: K classes, M true boxes, P regions, R sampled regions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector.boxes import pairwise_iou
from ovbridge.detector.sampling import SampledRegions
from ovbridge.structures import BoxLabels, RegionTargets

CLIP_SCALE = 100.0
"""CLIP's own logit scale: probabilities are softmax(100 cos) over all names."""
LEAST_OBJECTNESS = 0.5
"""The proposer's score that a named region needs: CLIP names parts and noise surely too."""
EXPLAINED = 0.5
"""A region of which a true box covers this share is that object or a part of it."""
NEAR_IOU = 0.1
"""Regions that overlap a named box so much are its positives and its misses; those farther off say nothing of its
class, which may be anywhere else in the picture."""


@dataclass(frozen=True, kw_only=True)
class NamedRegions:
    """Which regions become boxes."""

    candidates_K: Tensor  # noqa: N815 - dense-maths suffix
    """[K] bool: classes with labels and without boxes."""
    probability: float
    """Least probability that CLIP gives the name, in [0, 1]."""


@torch.no_grad()
def named_boxes(regions: RegionTargets | None, truth: BoxLabels, rule: NamedRegions, text_KD: Tensor) -> BoxLabels:
    """The regions [P, 4] of one image that count as boxes, with their classes; pixels of the image given.

    `text_KD` [K, D] unit rows: all names, so that a thing of another class is named as that.
    """
    device = truth.boxes_xyxy.device
    if regions is None or not len(regions):
        return BoxLabels(
            boxes_xyxy=truth.boxes_xyxy.new_zeros((0, 4)), class_ids=torch.zeros(0, dtype=torch.int64, device=device)
        )
    boxes_P4 = regions.boxes_xyxy.to(truth.boxes_xyxy)
    unit_PD = F.normalize(regions.embeddings.to(device, torch.float32), dim=1)
    probability_P, class_ids_P = (CLIP_SCALE * unit_PD @ text_KD.T).softmax(dim=1).max(dim=1)
    sure_P = (probability_P >= rule.probability) & rule.candidates_K.to(device)[class_ids_P]
    sure_P &= regions.scores.to(device) >= LEAST_OBJECTNESS
    sure_P &= _covered(boxes_P4, truth.boxes_xyxy) < EXPLAINED
    return BoxLabels(boxes_xyxy=boxes_P4[sure_P], class_ids=class_ids_P[sure_P])


def with_named(truth: BoxLabels, named: BoxLabels) -> BoxLabels:
    """True boxes first, then named ones; without masks, which only the true boxes have."""
    return replace(
        truth,
        boxes_xyxy=torch.cat([truth.boxes_xyxy, named.boxes_xyxy]),
        class_ids=torch.cat([truth.class_ids, named.class_ids]),
        masks=None,
    )


def near_columns(sampled: SampledRegions, named: BoxLabels, num_classes: int) -> Tensor:
    """[R, K] bool: the named classes that each region is a positive or a miss of."""
    near_RK = torch.zeros(len(sampled), num_classes, dtype=torch.bool, device=sampled.boxes_xyxy.device)
    if len(named.boxes_xyxy):
        overlap_RP = pairwise_iou(sampled.boxes_xyxy, named.boxes_xyxy) >= NEAR_IOU
        region, box = overlap_RP.nonzero(as_tuple=True)
        near_RK[region, named.class_ids[box]] = True
    return near_RK


def _covered(boxes_P4: Tensor, true_boxes_M4: Tensor) -> Tensor:
    """[P] largest share of each box that one true box covers; 0 where there is none."""
    if not len(true_boxes_M4):
        return boxes_P4.new_zeros(len(boxes_P4))
    low = torch.maximum(boxes_P4[:, None, :2], true_boxes_M4[None, :, :2])
    high = torch.minimum(boxes_P4[:, None, 2:], true_boxes_M4[None, :, 2:])
    area_P = (boxes_P4[:, 2:] - boxes_P4[:, :2]).prod(dim=1)
    shared_PM = (high - low).clamp(min=0).prod(dim=2)
    return (shared_PM / area_P.clamp(min=1e-6)[:, None]).amax(dim=1)
