"""A trained detector with fused scores: the same boxes and region features, other numbers beside them.

Legend: R regions, F region feature, D embedding, K names, N detections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector.boxes import clip_boxes, decode_boxes, suppress_sorted
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.detector.pooling import batch_rois
from ovbridge.detector.postprocess import RawDetections, to_original_size
from ovbridge.detector.projection import LinearProjection
from ovbridge.errors import ConfigError
from ovbridge.inference import Detector
from ovbridge.labeling.region_embeddings import embed_boxes
from ovbridge.rescoring.config import ScoreFusion
from ovbridge.structures import Detections
from ovbridge.teachers.protocol import RegionEncoder
from ovbridge.vocabulary import Role

CANDIDATES = 16
"""So many times as many pairs as detections are wanted go through suppression."""

Pixels = np.ndarray[Any, Any]


class FusedDetector:
    """`detect_batch` over a fixed vocabulary with known roles."""

    def __init__(
        self,
        detector: Detector,
        names: Sequence[str],
        roles: Sequence[Role],
        fusion: ScoreFusion,
        *,
        clip: RegionEncoder | None = None,
        text_KD: Tensor | None = None,
    ) -> None:
        """`clip` embeds crops where the fusion needs it; `text_KD` [K, D] replaces the checkpoint's text embeddings.

        Raises ConfigError where the fusion needs what the detector or the caller does not have.
        """
        if fusion.distilled_head and isinstance(detector.model.roi_head.projection, LinearProjection):
            raise ConfigError(
                "fusion distilled_head needs a detector with weight transfer, this one has one projection"
            )
        if fusion.needs_clip and clip is None:
            raise ConfigError("fusion clip_base and clip_novel need CLIP: name the one that trained the detector")
        self._detector, self._clip, self._fusion = detector, clip, fusion
        self._names = tuple(names)
        rows_KD = detector.text_rows(names) if text_KD is None else text_KD
        self._text_KD = F.normalize(rows_KD.float(), dim=1).to(detector.model.device)
        self._novel_K = torch.tensor([role == "novel" for role in roles], device=detector.model.device)

    @torch.inference_mode()
    def detect_batch(
        self, images: Sequence[Pixels], *, score_threshold: float, max_detections: int
    ) -> list[Detections]:
        """Detections of each image [H, W, 3] uint8 RGB, best first, boxes in its pixels."""
        resized = [self._detector.resize(pixels) for pixels in images]
        inputs = [torch.from_numpy(p).permute(2, 0, 1).to(self._text_KD.device) for p in resized]
        found: dict[int, Detections] = {}
        for group in self._detector.passes(resized):
            raw = detect_fused(
                self._detector.model,
                [inputs[i] for i in group],
                self._text_KD,
                self._novel_K,
                self._fusion,
                score_threshold=score_threshold,
                max_detections=max_detections,
            )
            for i, one in zip(group, raw, strict=True):
                fitted = to_original_size(one, resized[i].shape[:2], images[i].shape[:2])
                found[i] = self._finished(fitted, images[i], score_threshold)
        return [found[i] for i in range(len(images))]

    def _finished(self, raw: RawDetections, pixels: Pixels, threshold: float) -> Detections:
        scores = raw.scores.float()
        if self._clip is not None and self._fusion.needs_clip and len(scores):
            crops_ND = embed_boxes([pixels], [raw.boxes_xyxy.cpu()], self._clip, "tight")[0]
            scores = fuse_clip(
                scores, crops_ND.to(scores.device), raw.class_ids, self._text_KD, self._novel_K, self._fusion
            )
        order = scores.sort(descending=True, stable=True).indices
        order = order[scores[order] > threshold]
        return Detections(
            boxes_xyxy=raw.boxes_xyxy[order].float().cpu(),
            scores=scores[order].cpu(),
            class_ids=raw.class_ids[order].cpu(),
            names=self._names,
            masks=None if raw.masks is None else raw.masks[order].cpu(),
        )


def detect_fused(
    model: TwoStageDetector,
    images: Sequence[Tensor],
    text_KD: Tensor,
    novel_K: Tensor,
    fusion: ScoreFusion,
    *,
    score_threshold: float,
    max_detections: int,
) -> list[RawDetections]:
    """As `TwoStageDetector.detect`, with the two heads mixed and objectness in the score."""
    limits, config, head = model.config.rpn, model.config.postprocess, model.roi_head
    encoded = model.encode(images)
    proposals = model.rpn.select(
        model.rpn(encoded.features), encoded.sizes, pre_nms=limits.pre_nms_test, post_nms=limits.post_nms_test
    )
    rois = batch_rois([p.boxes_xyxy for p in proposals])
    region_RF = head.in_chunks(encoded.features, rois)
    boxes_R4 = decode_boxes(rois[:, 1:], head.box_regressor(region_RF), model.config.roi.box_weights)
    embedding_RD = head.unit_embeddings(region_RF)
    if fusion.distilled_head:
        w = fusion.distilled_head
        embedding_RD = (1 - w) * embedding_RD + w * head.distilled_unit_embeddings(region_RF)
    query_RD = head.classifier.query(embedding_RD)
    logits_RK = query_RD @ text_KD.T
    class_RK = torch.sigmoid(logits_RK if head.classifier.bias is None else logits_RK + head.classifier.bias)
    objectness_R = torch.cat([p.logits for p in proposals]).sigmoid()
    score_RK = fuse_objectness(class_RK, objectness_R, novel_K, fusion)
    counts = [len(p.boxes_xyxy) for p in proposals]
    found = [
        _select(boxes, scores, size, config.nms_iou, score_threshold, max_detections)
        for boxes, scores, size in zip(
            torch.split(boxes_R4, counts), torch.split(score_RK, counts), encoded.sizes, strict=True
        )
    ]
    if model.mask_head is None:
        return found
    masks = model.mask_head(encoded.features, batch_rois([d.boxes_xyxy for d in found])).sigmoid()
    parts = torch.split(masks, [len(d.boxes_xyxy) for d in found])
    return [replace(d, mask_probabilities=part) for d, part in zip(found, parts, strict=True)]


def fuse_objectness(class_RK: Tensor, objectness_R: Tensor, novel_K: Tensor, fusion: ScoreFusion) -> Tensor:
    """[R, K] class^(1-a) * objectness^a with the exponent of each column's role."""
    a_K = torch.where(novel_K, fusion.objectness_novel, fusion.objectness_base)
    return class_RK ** (1 - a_K) * objectness_R[:, None] ** a_K


def fuse_clip(
    scores_N: Tensor, crops_ND: Tensor, class_ids_N: Tensor, text_KD: Tensor, novel_K: Tensor, fusion: ScoreFusion
) -> Tensor:
    """[N] score^(1-a) * p^a, p = CLIP's softmax over all names for the crop, at the class of the detection."""
    cosine_NK = F.normalize(crops_ND.float(), dim=1) @ text_KD.T
    probability_N = (fusion.clip_scale * cosine_NK).softmax(dim=1).gather(1, class_ids_N[:, None])[:, 0]
    a_N = torch.where(novel_K, fusion.clip_novel, fusion.clip_base)[class_ids_N]
    return scores_N ** (1 - a_N) * probability_N**a_N


def _select(
    boxes_R4: Tensor, score_RK: Tensor, image_hw: tuple[int, int], nms_iou: float, threshold: float, limit: int
) -> RawDetections:
    boxes_R4 = clip_boxes(boxes_R4, image_hw)
    score_RK = torch.where(torch.isfinite(boxes_R4).all(dim=1)[:, None], score_RK, -1.0)
    best, flat = score_RK.flatten().sort(descending=True, stable=True)
    kept = (best > threshold).nonzero().flatten()[: CANDIDATES * limit]
    regions, class_ids = flat[kept] // score_RK.shape[1], flat[kept] % score_RK.shape[1]
    boxes = boxes_R4[regions]
    survivors = suppress_sorted(boxes, class_ids, nms_iou, limit)
    return RawDetections(boxes_xyxy=boxes[survivors], scores=best[kept][survivors], class_ids=class_ids[survivors])
