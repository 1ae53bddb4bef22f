"""A fused detector out of a loaded one: fetches the CLIP and the text embeddings that the fusion needs."""

from __future__ import annotations

from ovbridge.inference import Detector
from ovbridge.rescoring.config import ScoreFusion
from ovbridge.rescoring.detector import FusedDetector
from ovbridge.vocabulary import Vocabulary


def fused_detector(detector: Detector, vocabulary: Vocabulary, fusion: ScoreFusion) -> FusedDetector:
    """`detector` over all names of `vocabulary`; CLIP for crops and prompts is the one that it names.

    Raises TeacherError where that cannot be loaded, ConfigError where the detector lacks what the fusion mixes.
    """
    clip = text_KD = None
    if fusion.needs_clip or fusion.templates:
        from ovbridge.teachers.clip import load_clip

        clip = load_clip(detector.metadata.text_encoder.removeprefix("open_clip:"))
        if fusion.templates:
            text_KD = clip.embed_names(vocabulary.names, fusion.templates).embeddings_KD
    return FusedDetector(detector, vocabulary.names, vocabulary.roles, fusion, clip=clip, text_KD=text_KD)
