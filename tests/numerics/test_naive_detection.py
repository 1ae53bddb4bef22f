"""Whole detections against a plain re-enactment of the official steps, on shapes that no golden image has.

The re-enactment takes the detector's layers, pools with torchvision's RoIAlign, runs the head as the official code
does, thresholds everything, and suppresses with torchvision's `batched_nms`: none of the shortcuts of `detect`.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import batched_nms, roi_align

from ovbridge.detector import DetectorConfig, TwoStageDetector, build_detector, coco_r50_c4, lvis_r50_fpn
from ovbridge.detector.boxes import decode_boxes
from ovbridge.detector.roi_head import Stage5Trunk

CLASSES = 30
SHAPES = ((64, 96), (33, 401), (400, 35), (18, 17), (63, 65), (32, 32), (97, 64))


def _small(config: DetectorConfig) -> DetectorConfig:
    stages = len(config.backbone.depths)
    backbone = replace(
        config.backbone, stem_channels=8, depths=(1,) * stages, channels=(16, 32, 32, 32)[:stages], freeze_at=0
    )
    if backbone.pyramid is not None:
        backbone = replace(backbone, pyramid=replace(backbone.pyramid, channels=16))
    rpn = replace(config.rpn, pre_nms_test=120, post_nms_test=60)
    roi = config.roi
    if roi.stage5 is not None:
        roi = replace(roi, stage5=replace(roi.stage5, depth=2, channels=64))
    if roi.fully_connected is not None:
        roi = replace(roi, fully_connected=replace(roi.fully_connected, widths=(32, 32)))
    mask = None if config.mask is None else replace(config.mask, channels=16, convolutions=2)
    return replace(config, backbone=backbone, rpn=rpn, roi=roi, mask=mask)


def _detector(config: DetectorConfig, gain: float) -> TwoStageDetector:
    """With layers loud enough that boxes move and scores differ."""
    generator = torch.Generator().manual_seed(2)
    model = build_detector(_small(config), torch.randn(CLASSES, 512, generator=generator), seed=5).eval()
    with torch.no_grad():
        model.backbone.get_parameter(("body." if model.config.backbone.pyramid else "") + "stem.weight").mul_(0.02)
        model.rpn.objectness.weight.mul_(30.0 * gain)
        model.rpn.deltas.weight.mul_(30.0 * gain)
        model.roi_head.box_regressor.fc2.weight.mul_(300.0 * gain)
    return model


def _picture(height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(height * 1000 + width)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def _clipped(boxes: Tensor, height: int, width: int) -> Tensor:
    return torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=2).flatten(1)


def _naive_proposals(model: TwoStageDetector, features: list[Tensor], height: int, width: int) -> Tensor:
    predictions, config = model.rpn(features), model.config.rpn
    boxes, logits, levels = [], [], []
    for level, anchors in enumerate(predictions.anchors):
        best, index = predictions.logits[level][0].sort(descending=True, stable=True)
        index = index[: config.pre_nms_test]
        boxes.append(decode_boxes(anchors[index], predictions.deltas[level][0][index], (1.0, 1.0, 1.0, 1.0)))
        logits.append(best[: config.pre_nms_test])
        levels.append(torch.full_like(index, level))
    boxes_N4, logits_N, levels_N = _clipped(torch.cat(boxes), height, width), torch.cat(logits), torch.cat(levels)
    usable = (boxes_N4[:, 2] > boxes_N4[:, 0]) & (boxes_N4[:, 3] > boxes_N4[:, 1])
    boxes_N4, logits_N, levels_N = boxes_N4[usable], logits_N[usable], levels_N[usable]
    return boxes_N4[batched_nms(boxes_N4, logits_N, levels_N, config.nms_iou)[: config.post_nms_test]]


def _pooled(model: TwoStageDetector, features: list[Tensor], boxes: Tensor, side: int) -> Tensor:
    """One box at a time, each from its level."""
    strides = model.roi_head.trunk.pooler.strides
    out = []
    for box in boxes:
        area = float((box[2] - box[0]) * (box[3] - box[1]))
        level = (
            0 if len(strides) == 1 else int(min(max(4 + torch.tensor(area**0.5 / 224 + 1e-8).log2().floor(), 2), 5)) - 2
        )
        roi = torch.cat([torch.zeros(1), box])[None]
        out.append(roi_align(features[level], roi, side, 1 / strides[level], sampling_ratio=0, aligned=True))
    return torch.cat(out)


def _naive_detections(model: TwoStageDetector, picture: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    height, width = picture.shape[1:]
    batch, _ = model.pixels([picture])
    features = model.backbone(batch)
    proposals = _naive_proposals(model, features, height, width)
    head = model.roi_head
    if isinstance(head.trunk, Stage5Trunk):
        region = head.trunk.stage5(_pooled(model, features, proposals, 14)).mean(dim=(2, 3))
    else:
        region = _pooled(model, features, proposals, 7).flatten(1)
        for layer in head.trunk.layers:
            region = F.relu(layer(region))
    boxes = _clipped(decode_boxes(proposals, head.box_regressor(region), (10.0, 10.0, 5.0, 5.0)), height, width)
    scores = head.logits(region).sigmoid()
    config = model.config.postprocess
    rows, classes = (scores > config.score_threshold).nonzero(as_tuple=True)
    kept = batched_nms(boxes[rows], scores[rows, classes], classes, config.nms_iou)[: config.max_detections]
    return boxes[rows[kept]], scores[rows[kept], classes[kept]], classes[kept]


@torch.inference_mode()
@pytest.mark.parametrize("gain", [1.0, 8.0])
@pytest.mark.parametrize("architecture", [coco_r50_c4, lvis_r50_fpn])
def test_detections_are_those_of_the_plain_way(architecture: object, gain: float) -> None:
    model = _detector(architecture(), gain)  # type: ignore[operator]
    for shape in SHAPES:
        picture = _picture(*shape)
        (found,) = model.detect([picture])
        boxes, scores, classes = _naive_detections(model, picture)
        assert len(found.scores) == len(scores) > 0, shape
        torch.testing.assert_close(found.scores, scores, atol=1e-5, rtol=1e-4)
        same = (
            ((found.boxes_xyxy[:, None] - boxes[None]).abs().amax(dim=2) < 2e-2)
            & (found.class_ids[:, None] == classes)
            & ((found.scores[:, None] - scores).abs() < 1e-4)
        )
        assert same.any(dim=1).float().mean() >= 0.98, shape
        limit = torch.tensor([shape[1], shape[0], shape[1], shape[0]])
        assert ((found.boxes_xyxy >= 0) & (found.boxes_xyxy <= limit)).all()


@torch.inference_mode()
@pytest.mark.parametrize("architecture", [coco_r50_c4, lvis_r50_fpn])
def test_pictures_without_proposals_or_detections(architecture: object) -> None:
    model = _detector(architecture(), 1.0)  # type: ignore[operator]
    pictures = [_picture(40, 60), _picture(64, 48)]
    nothing = model.detect(pictures, postprocess=replace(model.config.postprocess, score_threshold=1.0))
    assert [len(found.scores) for found in nothing] == [0, 0]
    model.rpn.deltas.bias.fill_(float("nan"))
    for found in model.detect(pictures):
        assert (len(found.scores), tuple(found.boxes_xyxy.shape)) == (0, (0, 4))


@torch.inference_mode()
@pytest.mark.parametrize("architecture", [coco_r50_c4, lvis_r50_fpn])
def test_a_picture_is_detected_alike_alone_and_beside_others_of_its_padding(architecture: object) -> None:
    model = _detector(architecture(), 1.0)  # type: ignore[operator]
    # The C4 detector pads to the largest picture, so only equal sizes are alike there.
    shapes = ((64, 96), (50, 90)) if model.config.pixels.size_divisibility else ((64, 96), (64, 96))
    pictures = [_picture(*shapes[0]), _picture(*shapes[1]).flip(2)]
    for picture, together in zip(pictures, model.detect(pictures), strict=True):
        (alone,) = model.detect([picture])
        torch.testing.assert_close(alone.scores, together.scores, atol=1e-5, rtol=1e-4)
