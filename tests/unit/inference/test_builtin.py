"""The detector that ships with the package."""

from __future__ import annotations

from ovbridge.detector import load_detector
from ovbridge.inference import builtin_checkpoint


def test_builtin_detector_is_there_and_went_through_every_stage() -> None:
    model, metadata = load_detector(builtin_checkpoint())
    assert metadata.stage == "rkd_pis_wt"
    assert model.num_classes == 80
