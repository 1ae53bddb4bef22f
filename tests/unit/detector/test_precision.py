"""Half precision: the network may run in bfloat16, scores and boxes come out in float32 and nearly the same."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch

from ovbridge.detector import PostprocessConfig, TwoStageDetector
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
