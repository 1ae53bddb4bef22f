"""The detector that ships with the package."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovbridge.detector import load_detector
from ovbridge.device import DetectionPrecision
from ovbridge.errors import ConfigError
from ovbridge.inference import Detector, builtin_checkpoint
from ovbridge.world.render import render_scene
from ovbridge.world.scene import compose_scene


def test_builtin_detector_is_there_and_went_through_every_stage() -> None:
    model, metadata = load_detector(builtin_checkpoint())
    assert metadata.stage == "rkd_pis_wt"
    assert model.num_classes == 80


@pytest.mark.parametrize("precision", ["mixed", "bf16", "auto"])
def test_other_precisions_find_the_same_things(precision: DetectionPrecision) -> None:
    scene = np.asarray(render_scene(compose_scene(np.random.default_rng(5))))
    exact, other = Detector.load(device="cpu"), Detector.load(device="cpu", precision=precision)
    (a,), (b,) = exact.detect_batch([scene], score_threshold=0.01), other.detect_batch([scene], score_threshold=0.01)
    assert abs(len(a.scores) - len(b.scores)) <= 3
    assert a.class_names[0] == b.class_names[0]
    torch.testing.assert_close(a.scores[0], b.scores[0], atol=0.05, rtol=0.05)
    assert b.boxes_xyxy.dtype == torch.float32


def test_an_unknown_precision_is_named() -> None:
    with pytest.raises(ConfigError, match="no precision 'fp8': choose fp32, mixed, bf16, auto"):
        Detector.load(precision="fp8")  # type: ignore[arg-type]
