"""Region proposal network (arXiv 1506.01497): class-agnostic boxes from anchors on every feature level.

Legend: B images, L levels, A anchors a cell, N anchors of a level or of all levels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector.anchors import cell_anchors, grid_anchors
from ovbridge.detector.boxes import clip_boxes, decode_boxes, nonempty, suppress_sorted
from ovbridge.detector.config import RpnConfig
from ovbridge.detector.winograd import Conv3x3

DELTA_WEIGHTS = (1.0, 1.0, 1.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class AnchorPredictions:
    """What the network says of every anchor, one entry a level."""

    anchors: tuple[Tensor, ...]
    """[N, 4] xyxy in pixels of the padded input."""
    logits: tuple[Tensor, ...]
    """[B, N] objectness before the sigmoid."""
    deltas: tuple[Tensor, ...]
    """[B, N, 4] box deltas."""


@dataclass(frozen=True, kw_only=True)
class BoxProposals:
    """Proposals of one image, best first."""

    boxes_xyxy: Tensor
    """[N, 4] in pixels of the network's input image, clipped to it."""
    logits: Tensor
    """[N] objectness before the sigmoid."""


class RegionProposalNetwork(nn.Module):
    """One 3x3 convolution and two 1x1 heads, shared by all levels."""

    def __init__(self, channels: int, strides: Sequence[int], config: RpnConfig) -> None:
        super().__init__()
        self.config = config
        self.strides = tuple(strides)
        anchors = len(config.anchor_sizes[0]) * len(config.aspect_ratios)
        self.conv = Conv3x3(channels, channels)
        self.objectness = nn.Conv2d(channels, anchors, 1)
        self.deltas = nn.Conv2d(channels, 4 * anchors, 1)
        for layer in (self.conv, self.objectness, self.deltas):
            nn.init.normal_(layer.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, layer.bias))

    def forward(self, features: Sequence[Tensor]) -> AnchorPredictions:
        """Feature maps [B, C, H, W], one a level → predictions for every anchor."""
        anchors, logits, deltas = [], [], []
        for feature, stride, sizes in zip(features, self.strides, self.config.anchor_sizes, strict=True):
            hidden = F.relu_(self.conv(feature))
            cell = cell_anchors(sizes, self.config.aspect_ratios).to(feature.device)
            anchors.append(grid_anchors((feature.shape[2], feature.shape[3]), stride, cell))
            logits.append(self.objectness(hidden).permute(0, 2, 3, 1).flatten(1).float())
            deltas.append(self.deltas(hidden).permute(0, 2, 3, 1).reshape(len(feature), -1, 4).float())
        return AnchorPredictions(anchors=tuple(anchors), logits=tuple(logits), deltas=tuple(deltas))

    @torch.no_grad()
    def select(
        self, predictions: AnchorPredictions, image_sizes: Sequence[tuple[int, int]], *, pre_nms: int, post_nms: int
    ) -> list[BoxProposals]:
        """The best boxes of each image: `pre_nms` a level, clipped, suppressed within levels, `post_nms` in all.

        No gradient: proposals are constants to the RoI head.
        """
        boxes, logits, levels = [], [], []
        for level, (anchors, level_logits, level_deltas) in enumerate(
            zip(predictions.anchors, predictions.logits, predictions.deltas, strict=True)
        ):
            best, index = level_logits.topk(min(pre_nms, level_logits.shape[1]), dim=1)
            chosen = level_deltas.gather(1, index[:, :, None].expand(-1, -1, 4))
            boxes.append(decode_boxes(anchors[index], chosen, DELTA_WEIGHTS))
            logits.append(best)
            levels.append(torch.full_like(index, level))
        all_boxes, all_logits, all_levels = torch.cat(boxes, dim=1), torch.cat(logits, dim=1), torch.cat(levels, dim=1)
        return [
            _suppress(all_boxes[i], all_logits[i], all_levels[i], image_hw, self.config.nms_iou, post_nms)
            for i, image_hw in enumerate(image_sizes)
        ]


def _suppress(
    boxes: Tensor, logits: Tensor, levels: Tensor, image_hw: tuple[int, int], iou: float, limit: int
) -> BoxProposals:
    finite = torch.isfinite(boxes).all(dim=1) & torch.isfinite(logits)
    boxes = clip_boxes(boxes, image_hw)
    usable = (finite & nonempty(boxes)).nonzero().flatten()
    order = usable[logits[usable].sort(descending=True, stable=True).indices]
    kept = order[suppress_sorted(boxes[order], levels[order], iou, limit)]
    return BoxProposals(boxes_xyxy=boxes[kept], logits=logits[kept])
