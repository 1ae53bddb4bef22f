"""Selecting before suppressing must give exactly what threshold - NMS per class - top-k gives."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torchvision.ops import nms

from ovbridge.detector import postprocess
from ovbridge.detector.boxes import clip_boxes
from ovbridge.detector.config import PostprocessConfig
from ovbridge.detector.postprocess import RawDetections, leading_regions, select_detections, to_original_size

IMAGE = (120, 160)


def naive(boxes: Tensor, scores_RK: Tensor, config: PostprocessConfig) -> list[tuple[float, int, list[float]]]:
    boxes = clip_boxes(boxes, IMAGE)
    kept: list[tuple[float, int, int]] = []
    for class_id in range(scores_RK.shape[1]):
        rows = (scores_RK[:, class_id] > config.score_threshold).nonzero().flatten()
        for row in rows[nms(boxes[rows], scores_RK[rows, class_id], config.nms_iou)].tolist():
            kept.append((scores_RK[row, class_id].item(), row, class_id))
    kept.sort(key=lambda entry: (-entry[0], entry[1], entry[2]))
    return [(score, class_id, boxes[row].tolist()) for score, row, class_id in kept[: config.max_detections]]


def found(raw: RawDetections) -> list[tuple[float, int, list[float]]]:
    return list(zip(raw.scores.tolist(), raw.class_ids.tolist(), raw.boxes_xyxy.tolist(), strict=True))


@pytest.mark.parametrize("scale", [0.5, 16.0])
@pytest.mark.parametrize("limit", [1, 10, 5000])
@pytest.mark.parametrize("columns_at_once", [7, 2048])
def test_equals_the_naive_order(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator, scale: float, limit: int, columns_at_once: int
) -> None:
    monkeypatch.setattr(postprocess, "COLUMNS_AT_ONCE", columns_at_once)
    regions, classes, dim = 60, 23, 6
    corner = torch.rand(regions, 2, generator=generator) * 100
    boxes = torch.cat([corner - 5, corner + 10 + torch.rand(regions, 2, generator=generator) * 60], dim=1)
    # Many scores are equal or saturate at 1: ties must come out in order of region, then class. All products are
    # exact in float32, however many columns are multiplied at once.
    query = (torch.randn(regions, dim, generator=generator) * 2).round() * scale
    text = (torch.randn(classes, dim, generator=generator) * 2).round() / 2
    config = PostprocessConfig(score_threshold=0.01, nms_iou=0.5, max_detections=limit)
    raw = select_detections(boxes, query, text, None, IMAGE, config)
    assert found(raw) == naive(boxes, torch.sigmoid(query @ text.T), config)


def test_bias_and_threshold_are_strict() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    config = PostprocessConfig(score_threshold=0.5, max_detections=10)
    query, text = torch.tensor([[1.0], [2.0]]), torch.tensor([[1.0]])
    raw = select_detections(boxes, query, text, torch.tensor([-1.0]), IMAGE, config)
    assert found(raw) == [(torch.sigmoid(torch.tensor(1.0)).item(), 0, [50, 50, 60, 60])]


def test_regions_that_are_not_finite_are_left_out() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, float("nan"), 10], [20, 20, 30, 30]])
    query = torch.tensor([[1.0], [1.0], [float("inf")]])
    raw = select_detections(boxes, query, torch.tensor([[1.0]]), None, IMAGE, PostprocessConfig())
    assert raw.boxes_xyxy.tolist() == [[0, 0, 10, 10]]


def test_nothing_in_nothing_out() -> None:
    raw = select_detections(torch.zeros(0, 4), torch.zeros(0, 3), torch.ones(5, 3), None, IMAGE, PostprocessConfig())
    assert len(raw.scores) == 0


def test_original_size_scales_each_axis_and_drops_what_vanishes() -> None:
    raw = RawDetections(
        boxes_xyxy=torch.tensor([[10.0, 20, 30, 40], [5, 5, 5, 9]]),
        scores=torch.tensor([0.9, 0.8]),
        class_ids=torch.tensor([1, 2]),
        mask_probabilities=torch.ones(2, 28, 28),
    )
    seen = to_original_size(raw, (100, 200), (50, 400))
    assert seen.boxes_xyxy.tolist() == [[20, 10, 60, 20]]
    assert seen.class_ids.tolist() == [1]
    assert seen.masks is not None
    assert seen.masks.shape == (1, 50, 400)
    assert seen.masks[0, 10:20, 20:60].all()
    assert int(seen.masks.sum()) == 400


@pytest.mark.parametrize("columns_at_once", [3, 2048])
def test_leading_regions_are_those_with_the_best_class(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator, columns_at_once: int
) -> None:
    monkeypatch.setattr(postprocess, "COLUMNS_AT_ONCE", columns_at_once)
    monkeypatch.setattr(postprocess, "LEADING_REGIONS", 5)
    query, text = torch.randn(20, 6, generator=generator), torch.randn(11, 6, generator=generator)
    query[3] = torch.nan
    best = (query @ text.T).amax(dim=1)
    best[3] = -torch.inf
    assert set(leading_regions(query, text).tolist()) == set(best.topk(5).indices.tolist())
    assert len(leading_regions(query[:2], text)) == 2
    assert len(leading_regions(query[:0], text)) == 0
