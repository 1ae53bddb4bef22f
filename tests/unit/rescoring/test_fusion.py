from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from ovbridge.config_tree import apply_overrides
from ovbridge.detector import DetectorMetadata, build_detector, to_weight_transfer, world_r18_fpn
from ovbridge.detector.config import MaskConfig, TransferConfig
from ovbridge.errors import ConfigError
from ovbridge.inference import Detector
from ovbridge.rescoring import FusedDetector, ScoreFusion
from ovbridge.rescoring.detector import fuse_clip, fuse_objectness

NAMES, ROLES = ("mug", "kite", "drum"), ("base", "novel", "unused")


@pytest.fixture(scope="module")
def detector():
    text = torch.randn(3, 8, generator=torch.Generator().manual_seed(0))
    model = to_weight_transfer(
        build_detector(world_r18_fpn(embedding_dim=8), text, seed=1),
        TransferConfig(hidden=16, residual_hidden=16),
        seed=2,
    )
    vocabulary = tuple(
        {"name": n, "role": r, "category_id": k} for k, (n, r) in enumerate(zip(NAMES, ROLES, strict=True))
    )
    metadata = DetectorMetadata(
        stage="rkd_pis_wt", vocabulary=vocabulary, text_encoder="none", extra={"test_size": [64, 96]}
    )
    return Detector(model, metadata, device="cpu")


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)


def test_no_weight_changes_nothing(detector, image):
    plain = detector.detect_batch([image], score_threshold=0.3, max_detections=40)[0]
    fused = FusedDetector(detector, NAMES, ROLES, ScoreFusion())
    found = fused.detect_batch([image], score_threshold=0.3, max_detections=40)[0]
    assert len(plain) > 3
    torch.testing.assert_close(found.boxes_xyxy, plain.boxes_xyxy)
    torch.testing.assert_close(found.scores, plain.scores)
    assert found.class_ids.tolist() == plain.class_ids.tolist()


def test_all_weight_on_the_distilled_head_classifies_with_it_alone(detector, image):
    # The same trunk with the linear projection is the detector before weight transfer.
    linear = build_detector(world_r18_fpn(embedding_dim=8), detector.model.roi_head.classifier.text_KD, seed=1)
    before = Detector(linear, detector.metadata, device="cpu")
    expected = before.detect_batch([image], score_threshold=0.3, max_detections=40)[0]
    fused = FusedDetector(detector, NAMES, ROLES, ScoreFusion(distilled_head=1.0))
    found = fused.detect_batch([image], score_threshold=0.3, max_detections=40)[0]
    torch.testing.assert_close(found.scores, expected.scores)
    with pytest.raises(ConfigError, match="needs a detector with weight transfer"):
        FusedDetector(before, NAMES, ROLES, ScoreFusion(distilled_head=0.5))


def test_a_detector_with_masks_keeps_them(detector, image):
    # Rows of one LVIS table must all be mask AP.
    config = replace(world_r18_fpn(embedding_dim=8), mask=MaskConfig(resolution=4, channels=8, convolutions=1))
    model = build_detector(config, detector.model.roi_head.classifier.text_KD, seed=1)
    plain = Detector(model, detector.metadata, device="cpu")
    expected = plain.detect_batch([image, image], score_threshold=0.3, max_detections=10)
    fused = FusedDetector(plain, NAMES, ROLES, ScoreFusion())
    found = fused.detect_batch([image, image], score_threshold=0.3, max_detections=10)
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.masks.shape == (len(theirs), 64, 80)
        assert torch.equal(ours.masks, theirs.masks)


def test_objectness_goes_into_the_columns_of_its_role():
    scores = torch.tensor([[0.25, 0.25]])
    fused = fuse_objectness(
        scores, torch.tensor([0.81]), torch.tensor([False, True]), ScoreFusion(objectness_novel=0.5)
    )
    torch.testing.assert_close(fused, torch.tensor([[0.25, 0.45]]))  # sqrt(0.25 * 0.81)


def test_clip_probability_by_hand():
    text = F.normalize(torch.eye(2), dim=1)
    fusion = ScoreFusion(clip_base=1.0, clip_novel=0.5, clip_scale=np.log(3.0))
    crops = torch.tensor([[5.0, 0.0], [0.0, 2.0]])
    # Softmax over cosines 1 and 0, times ln 3: 3/4 and 1/4.
    fused = fuse_clip(torch.tensor([0.2, 0.48]), crops, torch.tensor([0, 1]), text, torch.tensor([False, True]), fusion)
    torch.testing.assert_close(fused, torch.tensor([0.75, 0.6]))  # 0.75^1; sqrt(0.48 * 0.75)


def test_settings_are_checked():
    assert apply_overrides(ScoreFusion(), ["clip_novel=0.3", "templates=a {},the {}"]).templates == ("a {}", "the {}")
    with pytest.raises(ConfigError, match="weight from 0 to 1"):
        ScoreFusion(clip_novel=1.5)
    with pytest.raises(ConfigError, match="no place for the name"):
        ScoreFusion(templates=("a photo",))
    with pytest.raises(ConfigError, match="need CLIP"):
        FusedDetector(None, NAMES, ROLES, ScoreFusion(clip_base=0.1))  # type: ignore[arg-type]
