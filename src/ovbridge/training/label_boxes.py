"""Which region a label of an image is taught to, where it is not the stored box of "every <name>".

The two rules that the paper compares with (v1 Table 7), both over the detector's own proposals while it trains:
max-score takes the proposal that the classifier now likes best for the label (WSDDN, arXiv 1511.02853), max-size the
largest one whatever the label (Detic, arXiv 2201.02605, Eq. 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from ovbridge.detector.detector import EncodedImages, TwoStageDetector
from ovbridge.detector.pooling import batch_rois
from ovbridge.structures import TrainingImage

LabelBoxRule = Literal["stored", "max_score", "max_size"]

PROPOSALS = 128
"""Best proposals of an image that are looked at, as in Detic."""


@torch.no_grad()
def own_label_boxes(
    model: TwoStageDetector, encoded: EncodedImages, images: Sequence[TrainingImage], rule: LabelBoxRule
) -> list[Tensor]:
    """One box [labels, 4] (pixels of the batch) a label of each image; the stored box where there is no proposal."""
    found = model.rpn.select(
        model.rpn(encoded.features), encoded.sizes, pre_nms=model.config.rpn.pre_nms_train, post_nms=PROPOSALS
    )
    return [
        _of_image(model, encoded, i, proposals.boxes_xyxy, image, rule)
        for i, (proposals, image) in enumerate(zip(found, images, strict=True))
    ]


def _of_image(
    model: TwoStageDetector,
    encoded: EncodedImages,
    position: int,
    proposals_R4: Tensor,
    image: TrainingImage,
    rule: LabelBoxRule,
) -> Tensor:
    if image.labels is None:
        return proposals_R4.new_zeros((0, 4))
    stored = image.labels.boxes_xyxy.to(proposals_R4)
    if not len(stored) or not len(proposals_R4):
        return stored
    if rule == "max_size":
        area_R = (proposals_R4[:, 2:] - proposals_R4[:, :2]).prod(dim=1)
        return proposals_R4[area_R.argmax()].expand(len(stored), 4)
    rois = batch_rois([proposals_R4])
    rois[:, 0] = position
    logits_RK = model.roi_head.logits(model.roi_head.in_chunks(encoded.features, rois))
    return proposals_R4[logits_RK[:, image.labels.class_ids.to(logits_RK.device)].argmax(dim=0)]
