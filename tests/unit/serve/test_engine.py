"""The engine computes what `Detector` computes, in the precision that was asked for."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.errors import ConfigError
from ovbridge.inference import Detector, builtin_checkpoint
from ovbridge.serve.engine import DetectJob, Engine
from ovbridge.serve.limits import Limits
from ovbridge.structures import Detections
from ovbridge.world.render import render_scene
from ovbridge.world.scene import compose_scene


@pytest.fixture(scope="module")
def photo() -> np.ndarray:
    return np.asarray(render_scene(compose_scene(np.random.default_rng(5))))


def _served(pixels: np.ndarray, precision: str) -> Detections:
    engine = Engine.load(builtin_checkpoint(), Limits(), device="cpu", precision=precision)  # type: ignore[arg-type]
    upload = io.BytesIO()
    Image.fromarray(pixels).save(upload, "PNG")
    wanted = engine.wanted(None, score_threshold=0.05, max_detections=20)
    (found,) = engine.run([DetectJob(picture=engine.picture(upload.getvalue()), wanted=wanted)])
    return found


@pytest.mark.parametrize("precision", ["fp32", "mixed", "bf16"])
def test_serves_what_detect_finds_in_each_precision(photo: np.ndarray, precision: str) -> None:
    served = _served(photo, precision)
    expected = Detector.load(device="cpu", precision=precision).detect(photo, max_detections=20)  # type: ignore[arg-type]
    assert len(served.scores) > 0
    assert torch.equal(served.scores, expected.scores)
    assert torch.equal(served.boxes_xyxy, expected.boxes_xyxy)


def test_half_precision_is_not_fp32(photo: np.ndarray) -> None:
    assert not torch.equal(_served(photo, "bf16").scores[:5], _served(photo, "fp32").scores[:5])


def test_unknown_precision() -> None:
    with pytest.raises(ConfigError, match="no precision 'fp8': choose fp32"):
        Engine.load(builtin_checkpoint(), Limits(), device="cpu", precision="fp8")  # type: ignore[arg-type]
