"""One round of self-training: a trained detector proposes the boxes of the labels (SAS-Det, arXiv 2308.06412)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ovbridge.inference import Detector
from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import class_in
from ovbridge.training.inputs import fingerprint

BOXES = 20
"""Best boxes of a name; labelling takes the first."""
LOWEST_SCORE = 0.01


class DetectorProposer:
    """Answers "every <name>" with what a detector finds under that name alone, other queries with its proposals."""

    def __init__(self, checkpoint: Path, trained_on: str) -> None:
        """`trained_on` is what the labels that the detector was trained on come from."""
        self._detector = Detector.load(checkpoint)
        self.name, self.trained_on, self.digest = f"self:{checkpoint.parent.name}", trained_on, fingerprint(checkpoint)

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """See `Proposer.propose`."""
        return [[self._answer(image, text) for text in texts] for image, texts in zip(images, queries, strict=True)]

    def _answer(self, image: np.ndarray, text: str) -> Proposals:
        name = class_in(text)
        if name is None:
            return self._detector.propose(image, BOXES)
        found = self._detector.detect(image, [name], score_threshold=LOWEST_SCORE, max_detections=BOXES)
        return Proposals(boxes_xyxy=found.boxes_xyxy, scores=found.scores)
