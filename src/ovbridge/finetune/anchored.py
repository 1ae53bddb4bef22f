"""Fine-tuning that is anchored: what the open vocabulary rests on stays, and only the region head adapts.

Frozen: backbone, proposal network and box regression. Region trunk and projection learn the new classes while two
things hold them on the same images: the head as it was, on all regions but the user's objects (learning without
forgetting, arXiv 1606.09282: the scores of all other names, and the embeddings, for names that are in no list), and
region-based distillation (Eq. 1 and 2 of arXiv 2207.03482) from the image encoder. The new classes' rows of the text
bank learn too, from where their names put them.
Since everything below the trunk is frozen, it is computed once an image.
Legend: K classes, D embedding, B images, R regions, M true boxes.
"""

from __future__ import annotations

import copy
import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.detector import TwoStageDetector
from ovbridge.detector.boxes import clip_boxes, nonempty, pairwise_iou
from ovbridge.detector.detector import EncodedImages
from ovbridge.detector.pooling import batch_rois
from ovbridge.detector.roi_head import RoIHead
from ovbridge.detector.rpn import BoxProposals
from ovbridge.structures import BoxLabels, TrainingImage
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.objectives import region_losses, sample_batch
from ovbridge.training.prefetch import Batch

FROZEN = ("backbone", "rpn", "roi_head.box_regressor")
"""What an anchored fine-tuning does not touch."""
REMEMBERED_BYTES = 2_000_000_000
"""Feature maps kept in memory; beyond it they are computed again."""


class NewRows(nn.Module):
    """Learnable text rows of some classes, on top of a detector's fixed text bank."""

    def __init__(self, text_KD: Tensor, columns: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.rows = nn.Parameter(text_KD[list(columns)].clone())

    def forward(self, text_KD: Tensor) -> Tensor:
        """The whole bank [K, D] of unit rows, with gradient to the learnable ones."""
        assert isinstance(self.columns, Tensor)
        return text_KD.detach().index_copy(0, self.columns, F.normalize(self.rows, dim=1))


class FineTunedDetector(nn.Module):
    """A detector and the rows that learn with it: what the training loop drives."""

    def __init__(self, detector: TwoStageDetector, columns: Sequence[int]) -> None:
        super().__init__()
        self.detector = detector
        self.new_rows = NewRows(detector.roi_head.classifier.text_KD, columns)

    def apply_rows(self, *, learning: bool) -> None:
        """Put the learnable rows into the detector's text bank; with their gradient if `learning`."""
        classifier = self.detector.roi_head.classifier
        text_KD = self.new_rows(classifier.text_KD)
        classifier.text_KD = text_KD if learning else text_KD.detach()


class HeadAnchor:
    """The region head as it was, and how far the learning one has moved from it on the user's images."""

    def __init__(self, detector: TwoStageDetector, *, kept_columns_K: Tensor, regions: int) -> None:
        """`kept_columns_K` [K] bool: the names whose scores must stay; `regions`: proposals an image that are
        compared, and half as many boxes anywhere."""
        self._head = copy.deepcopy(detector.roi_head).requires_grad_(False).eval()
        self._kept_K, self._regions = kept_columns_K.to(detector.device), regions

    def __call__(
        self,
        detector: TwoStageDetector,
        encoded: EncodedImages,
        proposals: Sequence[BoxProposals],
        labels: Sequence[BoxLabels],
        generator: torch.Generator,
    ) -> tuple[Tensor, Tensor]:
        """How far the regions that hold none of the user's objects have moved, and how differently they are named.

        The first is the L1 `displacement` of unit embeddings and of box deltas, the second the `divergence` of the
        scores of the names to keep.
        """
        rois = batch_rois(
            [
                self._old_regions(found.boxes_xyxy, label.boxes_xyxy, hw, generator)
                for found, label, hw in zip(proposals, labels, encoded.sizes, strict=True)
            ]
        )
        unit_RD, deltas_R4, logits_RK = self._outputs(detector.roi_head, encoded, rois)
        with torch.no_grad():
            old_RD, old_deltas_R4, old_logits_RK = self._outputs(self._head, encoded, rois)
        moved = displacement(unit_RD, old_RD) + displacement(deltas_R4, old_deltas_R4)
        return moved, divergence(logits_RK, old_logits_RK)

    def _outputs(self, head: RoIHead, encoded: EncodedImages, rois: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Unit embeddings [R, D], box deltas [R, 4], and logits of the names to keep."""
        region_RF = head.trunk(encoded.features, rois)
        embedding_RD = head.projection(region_RF)
        logits_RK = head.classifier(embedding_RD)[:, self._kept_K]
        return F.normalize(embedding_RD.float(), dim=1), head.box_regressor(region_RF), logits_RK

    def _old_regions(
        self, proposals_N4: Tensor, true_boxes_M4: Tensor, image_hw: tuple[int, int], generator: torch.Generator
    ) -> Tensor:
        """Some proposals of one image, and boxes of any place and size; none overlaps a true box by half (IoU)."""
        chosen = torch.randperm(len(proposals_N4), generator=generator)[: self._regions].to(proposals_N4.device)
        anywhere = boxes_anywhere(self._regions // 2, image_hw, generator).to(proposals_N4.device)
        boxes = torch.cat([proposals_N4[chosen], anywhere])
        if len(true_boxes_M4) == 0:
            return boxes
        return boxes[pairwise_iou(true_boxes_M4, boxes).amax(dim=0) < 0.5]


def displacement(student_RE: Tensor, old_RE: Tensor) -> Tensor:
    """L1 of E elements, a mean over R regions; zero for none."""
    return (student_RE.float() - old_RE.float()).abs().sum() / max(len(old_RE), 1)


def divergence(logits_RK: Tensor, old_RK: Tensor) -> Tensor:
    """Kullback-Leibler divergence of sigmoid scores from the old ones, a sum over K names and a mean over R regions;
    zero for none."""
    old_scores_RK = old_RK.float().sigmoid()
    crossed, least = (
        F.binary_cross_entropy_with_logits(logits.float(), old_scores_RK, reduction="sum")
        for logits in (logits_RK, old_RK)
    )
    return (crossed - least) / max(len(old_RK), 1)


def boxes_anywhere(count: int, image_hw: tuple[int, int], generator: torch.Generator) -> Tensor:
    """At most `count` boxes [N, 4] xyxy in pixels, cut to the image: centres uniform, sides log-uniform from a twelfth
    of the shorter side to all of it."""
    height, width = image_hw
    centre = torch.rand(count, 2, generator=generator) * torch.tensor([width, height])
    half = 0.5 * min(image_hw) * 12 ** -torch.rand(count, 2, generator=generator)
    boxes = clip_boxes(torch.cat([centre - half, centre + half], dim=1), image_hw)
    return boxes[nonempty(boxes)]


class AnchoredLosses:
    """Classification of the user's classes, and what holds the rest, on proposals of the frozen part."""

    def __init__(
        self,
        *,
        weights: LossWeights,
        trained_columns_K: Tensor,
        padded_hw: tuple[int, int],
        anchor: HeadAnchor,
        anchor_weight: float,
        name_anchor_weight: float,
    ) -> None:
        self._weights, self._columns_K, self._padded_hw = weights, trained_columns_K, padded_hw
        self._anchor, self._anchor_weight, self._name_anchor_weight = anchor, anchor_weight, name_anchor_weight
        self._kept: dict[int, tuple[list[Tensor], BoxProposals]] = {}
        self._kept_bytes = 0

    def __call__(self, model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
        """Losses of a batch of boxed images: those of `training.objectives.region_losses`, anchor and name_anchor."""
        assert isinstance(model, FineTunedDetector)
        model.apply_rows(learning=True)
        detector = model.detector
        found = [self._frozen_part(detector, image) for image in batch.images]
        features = [torch.cat(level) for level in zip(*(maps for maps, _ in found), strict=True)]
        sizes = [(int(image.pixels.shape[1]), int(image.pixels.shape[2])) for image in batch.images]
        encoded, proposals = EncodedImages(features=features, sizes=sizes), [boxes for _, boxes in found]
        labels = [_labels(image, detector.device) for image in batch.images]
        sampled = sample_batch(detector, proposals, labels, generator=generator)
        losses = region_losses(
            detector,
            encoded,
            sampled,
            batch.images,
            [None] * len(labels),
            weights=self._weights,
            columns=self._columns_K.to(detector.device),
        )
        if self._anchor_weight or self._name_anchor_weight:
            moved, renamed = self._anchor(detector, encoded, proposals, labels, generator)
            losses["anchor"] = self._anchor_weight * moved
            losses["name_anchor"] = self._name_anchor_weight * renamed
        # The tensor with the graph must not outlive the step.
        model.detector.roi_head.classifier.text_KD = model.detector.roi_head.classifier.text_KD.detach()
        return losses

    @torch.no_grad()
    def _frozen_part(self, detector: TwoStageDetector, image: TrainingImage) -> tuple[list[Tensor], BoxProposals]:
        key = zlib.crc32(image.pixels.numpy().tobytes())
        if key in self._kept:
            return self._kept[key]
        encoded = detector.encode([image.pixels], self._padded_hw)
        limits = detector.config.rpn
        (proposals,) = detector.rpn.select(
            detector.rpn(encoded.features), encoded.sizes, pre_nms=limits.pre_nms_train, post_nms=limits.post_nms_train
        )
        size = sum(level.numel() * level.element_size() for level in encoded.features)
        if self._kept_bytes + size <= REMEMBERED_BYTES:
            self._kept[key] = encoded.features, proposals
            self._kept_bytes += size
        return encoded.features, proposals


@torch.no_grad()
def interpolate(model: nn.Module, start: dict[str, Tensor], share: float) -> None:
    """WiSE-FT (arXiv 2109.01903): weights become `(1 - share) * start + share * tuned`, in place."""
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.lerp(start[name].to(value.device), value, share))


def _labels(image: TrainingImage, device: torch.device) -> BoxLabels:
    assert image.boxes is not None
    return BoxLabels(boxes_xyxy=image.boxes.boxes_xyxy.to(device), class_ids=image.boxes.class_ids.to(device))
