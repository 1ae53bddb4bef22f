"""The region proposal network of a trained detector as a proposer: the paper's ablation (v1 Table 6).

The detector itself is handed in as a function, so that teachers need not know the student's code.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from ovbridge.errors import TeacherError
from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import class_in

BOXES_KEPT = 300
"""Best boxes an image, as many as MAVL has."""


class RpnProposer:
    """Answers every class-agnostic query with the same boxes; knows no names."""

    def __init__(
        self, propose: Callable[[np.ndarray, int], Proposals], *, name: str, trained_on: str, digest: str
    ) -> None:
        """`propose(image, count)` gives the best boxes in pixels of the image, scores in [0, 1]."""
        self.name, self.trained_on, self.digest = name, trained_on, digest
        self._propose = propose

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """See `Proposer.propose`; raises TeacherError for the query of a name."""
        named = next((text for texts in queries for text in texts if class_in(text)), None)
        if named is not None:
            raise TeacherError(f"{self.name} finds objects, not names ({named!r}): use it for 'label regions'")
        found = [
            self._propose(image, BOXES_KEPT) if texts else None for image, texts in zip(images, queries, strict=True)
        ]
        return [[p] * len(texts) if p is not None else [] for p, texts in zip(found, queries, strict=True)]
