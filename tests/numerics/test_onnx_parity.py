"""The exported detector under onnxruntime against the same detector under torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor

from ovbridge.detector import (
    DetectorConfig,
    DetectorMetadata,
    RawDetections,
    TwoStageDetector,
    build_detector,
    coco_r50_c4,
    lvis_r50_fpn,
    world_r18_fpn,
)
from ovbridge.export.detector_graph import detector_graph

DIM = 32
SIZES = [(96, 160), (128, 100), (64, 64), (110, 131)]
METADATA = DetectorMetadata(stage="base", vocabulary=({"name": "a"}, {"name": "b"}), text_encoder="none")


def _c4() -> DetectorConfig:
    config = coco_r50_c4()
    return replace(
        config,
        backbone=replace(config.backbone, stem_channels=8, depths=(1, 1, 1), channels=(16, 16, 32)),
        rpn=replace(config.rpn, anchor_sizes=((16.0, 32.0, 64.0),), pre_nms_test=300, post_nms_test=150),
        roi=replace(config.roi, stage5=replace(config.roi.stage5, depth=1, channels=64)),  # type: ignore[type-var]
        projection=replace(config.projection, embedding_dim=DIM),
    )


def _mask_fpn() -> DetectorConfig:
    config = lvis_r50_fpn(transfer=True)
    assert config.roi.fully_connected is not None
    assert config.mask is not None
    assert config.backbone.pyramid is not None
    return replace(
        config,
        backbone=replace(
            config.backbone,
            stem_channels=8,
            depths=(1, 1, 1, 1),
            channels=(16, 16, 32, 32),
            pyramid=replace(config.backbone.pyramid, channels=16),
        ),
        rpn=replace(
            config.rpn,
            anchor_sizes=((8.0,), (16.0,), (32.0,), (64.0,), (128.0,)),
            pre_nms_test=200,
            post_nms_test=120,
        ),
        roi=replace(config.roi, fully_connected=replace(config.roi.fully_connected, widths=(32, 32))),
        projection=replace(config.projection, embedding_dim=DIM),
        mask=replace(config.mask, channels=8, convolutions=1),
        postprocess=replace(config.postprocess, max_detections=60),
    )


def _model(config: DetectorConfig) -> TwoStageDetector:
    """Random weights whose scores are spread: a fresh detector says nearly the same of every box."""
    bank = torch.randn(2, DIM, generator=torch.Generator().manual_seed(3))
    model = build_detector(replace(config, classifier=replace(config.classifier, scale=8.0)), bank, seed=1).eval()
    with torch.no_grad():
        model.rpn.objectness.weight *= 300
        model.rpn.deltas.weight *= 5
    return model


def _pictures(count: int) -> tuple[list[Tensor], dict[str, np.ndarray]]:
    """Pictures of different sizes, and the same padded with noise to one array."""
    generator = np.random.default_rng(0)
    sizes = SIZES[:count]
    padded = generator.integers(0, 255, (count, max(h for h, _ in sizes), max(w for _, w in sizes), 3), dtype=np.uint8)
    singles = [torch.from_numpy(padded[i, :h, :w].copy()).permute(2, 0, 1) for i, (h, w) in enumerate(sizes)]
    return singles, {"images": padded, "image_sizes": np.array(sizes, dtype=np.int64)}


def _session(model: TwoStageDetector) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    content = detector_graph(model, METADATA).SerializeToString()
    return onnxruntime.InferenceSession(content, options, providers=["CPUExecutionProvider"])


def _check(wanted: RawDetections, got: dict[str, np.ndarray], chosen: np.ndarray) -> None:
    """The same detections; two whose scores differ by less than the tolerance may have changed places."""
    boxes, scores, classes = got["boxes"][chosen], got["scores"][chosen], got["class_ids"][chosen]
    assert len(boxes) == len(wanted.scores)
    np.testing.assert_allclose(scores, wanted.scores.numpy(), atol=1e-4)
    left = set(range(len(boxes)))
    for i, (box, score, class_id) in enumerate(
        zip(wanted.boxes_xyxy.numpy(), wanted.scores.tolist(), wanted.class_ids.tolist(), strict=True)
    ):
        same = [
            j
            for j in left
            if classes[j] == class_id and abs(scores[j] - score) <= 1e-4 and np.abs(boxes[j] - box).max() <= 1e-3
        ]
        assert same, f"no counterpart of detection {i}: {box} {score} {class_id}"
        left.remove(same[0])
        if wanted.mask_probabilities is not None:
            mask = got["masks"][chosen][same[0]]
            np.testing.assert_allclose(mask, wanted.mask_probabilities[i].numpy(), atol=1e-4)


@pytest.fixture(
    scope="module", params=[lambda: world_r18_fpn(embedding_dim=DIM, channels=(8, 8, 16, 16)), _c4, _mask_fpn]
)
def pair(request: pytest.FixtureRequest) -> tuple[TwoStageDetector, onnxruntime.InferenceSession]:
    make: Callable[[], DetectorConfig] = request.param
    model = _model(make())
    return model, _session(model)


@pytest.mark.parametrize(("names", "batch"), [(1, 1), (1, 4), (80, 1), (80, 4), (1203, 4), (21000, 1)])
def test_same_detections(pair: tuple[TwoStageDetector, onnxruntime.InferenceSession], names: int, batch: int) -> None:
    model, session = pair
    text_KD = torch.randn(names, DIM, generator=torch.Generator().manual_seed(names))
    singles, padded = _pictures(batch)
    threshold = 0.05
    wanted = model.detect(
        singles, text_bank_KD=text_KD, postprocess=replace(model.config.postprocess, score_threshold=threshold)
    )
    inputs = padded | {"vocabulary": text_KD.numpy(), "score_threshold": np.array([threshold], np.float32)}
    outputs = [value.name for value in session.get_outputs()]
    got = dict(zip(outputs, session.run(None, inputs), strict=True))
    assert sum(len(w.scores) for w in wanted) >= 10 * batch
    for i, single in enumerate(wanted):
        _check(single, got, got["image_ids"] == i)


def test_defaults_are_the_stored_vocabulary_and_nothing_found_is_empty(
    pair: tuple[TwoStageDetector, onnxruntime.InferenceSession],
) -> None:
    model, session = pair
    singles, padded = _pictures(1)
    outputs = [value.name for value in session.get_outputs()]
    got = dict(zip(outputs, session.run(None, padded), strict=True))
    _check(model.detect(singles)[0], got, got["image_ids"] == 0)
    nothing = session.run(None, padded | {"score_threshold": np.array([1.0], np.float32)})
    assert [len(value) for value in nothing] == [0] * len(outputs)
