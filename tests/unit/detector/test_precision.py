"""Half precision: the network may run in bfloat16, scores and boxes come out in float32 and nearly the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from ovbridge.detector import PostprocessConfig, TwoStageDetector, postprocess
from ovbridge.detector.boxes import pairwise_iou


@torch.inference_mode()
def test_bfloat16_finds_what_float32_finds(tiny_detector: Callable[..., TwoStageDetector]) -> None:
    model = tiny_detector().eval()
    picture = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    boxes = [torch.tensor([[4.0, 4.0, 60.0, 50.0], [30.0, 10.0, 90.0, 60.0]])]
    few = replace(PostprocessConfig(), score_threshold=0.0, max_detections=10)
    (full,) = model.detect([picture], postprocess=few)
    (reference,) = model.region_embeddings([picture], boxes)
    model = model.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (half,) = model.detect([picture], postprocess=few)
        (embeddings,) = model.region_embeddings([picture], boxes)
    assert half.scores.dtype == half.boxes_xyxy.dtype == embeddings.dtype == torch.float32
    assert (embeddings * reference).sum(dim=1).min() > 0.999
    torch.testing.assert_close(half.scores, full.scores, atol=2e-2, rtol=2e-2)
    assert half.class_ids[0] == full.class_ids[0]
    assert pairwise_iou(half.boxes_xyxy, full.boxes_xyxy[:1]).max() > 0.9


@torch.inference_mode()
def test_mixed_precision_gives_the_best_of_float32(
    tiny_detector: Callable[..., TwoStageDetector], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several pictures in one pass, with words and with example pictures: exact where a region leads."""
    monkeypatch.setattr(postprocess, "LEADING_REGIONS", 12)
    model = tiny_detector().eval()
    model.roi_head.classifier.scale = 5.0  # else most scores are 1
    generator = torch.Generator().manual_seed(1)
    pictures = [torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=generator) for _ in range(3)]
    few = PostprocessConfig(score_threshold=0.0, max_detections=6)
    for example in (None, torch.randn(2, 8, generator=generator)):
        exact = model.detect(pictures, postprocess=few, example_ED=example)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            half = model.detect(pictures, postprocess=few, example_ED=example)
            mixed = model.detect(pictures, postprocess=few, example_ED=example, mixed=True)
        for full, rough, found in zip(exact, half, mixed, strict=True):
            torch.testing.assert_close(found.scores, full.scores, atol=1e-6, rtol=0)
            torch.testing.assert_close(found.boxes_xyxy, full.boxes_xyxy, atol=1e-4, rtol=0)
            assert torch.equal(found.class_ids, full.class_ids)
            assert not torch.allclose(rough.scores, full.scores, atol=1e-6, rtol=0), "half precision would do"


@torch.inference_mode()
def test_mixed_precision_without_a_region(tiny_detector: Callable[..., TwoStageDetector]) -> None:
    model = tiny_detector().eval()
    model.rpn.deltas.bias.fill_(torch.nan)
    picture = torch.zeros(3, 64, 96, dtype=torch.uint8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (found,) = model.detect([picture], mixed=True)
    assert len(found.scores) == 0
