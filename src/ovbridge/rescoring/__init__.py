"""Scores that weigh more than the class logit: options of evaluation beyond the paper."""

from ovbridge.rescoring.config import ScoreFusion
from ovbridge.rescoring.detector import FusedDetector

__all__ = ["FusedDetector", "ScoreFusion"]
