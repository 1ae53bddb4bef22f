"""Which proposals become pseudo labels.

Class-agnostic (RKD): the boxes of several queries are merged by NMS and the K best kept. Class-specific
(PIS): the best box of "every <name>" is kept if its score is above a threshold.
Sources: §3.1-3.2 of arXiv 2207.03482 and its released scripts. All boxes xyxy in pixels of the original image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor
from torchvision.ops import clip_boxes_to_image, nms

from ovbridge.errors import ConfigError
from ovbridge.structures import Proposals

MIN_SIDE = 1.0
"""A narrower or lower box, in pixels, shows nothing to the image encoder."""


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """How pseudo boxes are chosen out of proposals."""

    per_query: int = 50
    """Best boxes taken of each class-agnostic query."""
    nms_iou: float = 0.5
    """Of two boxes that overlap more than this, the lower scored goes."""
    top_k: int = 5
    """Regions kept per image."""
    paper_exact: bool = False
    """As the released scripts do it: boxes truncated to whole pixels, not clipped to the image, and the old
    convention in NMS that the last pixel belongs to a box (width = x2 - x1 + 1)."""

    def __post_init__(self) -> None:
        if self.top_k < 1 or self.per_query < 1:
            raise ConfigError(f"top K {self.top_k} of {self.per_query} boxes a query: give at least 1 of each")

    def summary(self) -> dict[str, int | float | bool]:
        """For a manifest."""
        return asdict(self)


def suppress(boxes_xyxy: Tensor, scores: Tensor, iou: float, *, last_pixel_inside: bool = False) -> Tensor:
    """Greedy non-maximum suppression.

    Args:
        boxes_xyxy: [N, 4].
        scores: [N].
        iou: a box goes if it overlaps a better one by more than this.
        last_pixel_inside: the old convention, width = x2 - x1 + 1.

    Returns:
        Indices of the boxes kept, best first.
    """
    boxes = boxes_xyxy.double()
    if last_pixel_inside:
        # Adding one pixel to the far corner is that convention, for areas and for intersections alike.
        boxes = boxes + boxes.new_tensor([0.0, 0.0, 1.0, 1.0])
    kept: Tensor = nms(boxes, scores.double(), iou)
    return kept


def usable(found: Proposals, height: int, width: int, *, paper_exact: bool) -> Proposals:
    """The proposals clipped to the image (or truncated to whole pixels), without those that have no area left."""
    boxes = found.boxes_xyxy.float()
    boxes = boxes.trunc() if paper_exact else clip_boxes_to_image(boxes, (height, width))
    has_area = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(dim=1) & torch.isfinite(boxes).all(dim=1)
    return Proposals(boxes_xyxy=boxes[has_area], scores=found.scores.float()[has_area])


def class_agnostic(per_query: Sequence[Proposals], height: int, width: int, config: SelectionConfig) -> Proposals:
    """The K best boxes of an image over all class-agnostic queries, best first; fewer where fewer are left."""
    found = [_best(p, config.per_query) for p in per_query]
    merged = Proposals(boxes_xyxy=torch.cat([p.boxes_xyxy for p in found]), scores=torch.cat([p.scores for p in found]))
    candidates = usable(merged, height, width, paper_exact=config.paper_exact)
    kept = suppress(candidates.boxes_xyxy, candidates.scores, config.nms_iou, last_pixel_inside=config.paper_exact)[
        : config.top_k
    ]
    return Proposals(boxes_xyxy=candidates.boxes_xyxy[kept], scores=candidates.scores[kept])


def best_box(
    found: Proposals, height: int, width: int, *, threshold: float, size_weight: float = 0.0, paper_exact: bool = False
) -> tuple[Tensor, float] | None:
    """The best box [4] of one "every <name>" query and its score; None unless the score is above `threshold`.

    Boxes are ranked by score * (share of the image's area)^`size_weight`. 0 is the paper's rule. Above it, a whole
    wins over its parts, which a proposer that never heard the name scores alike: between the score and "max-size"
    (Table 7 of version 1 of arXiv 2207.03482).
    """
    candidates = usable(found, height, width, paper_exact=paper_exact)
    sides = (candidates.boxes_xyxy[:, 2:] - candidates.boxes_xyxy[:, :2]).clamp(min=0)
    rank = candidates.scores * (sides.prod(dim=1) / (height * width)).pow(size_weight)
    if not len(rank):
        return None
    best = int(torch.sort(rank, descending=True, stable=True).indices[0])
    score = float(candidates.scores[best])
    return (candidates.boxes_xyxy[best], score) if score > threshold else None


def _best(found: Proposals, count: int) -> Proposals:
    order = torch.sort(found.scores, descending=True, stable=True).indices[:count]
    return Proposals(boxes_xyxy=found.boxes_xyxy[order], scores=found.scores[order])
