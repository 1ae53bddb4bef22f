"""Max-size over a proposer's class-agnostic boxes: the paper's ablation of "every <name>" (v1 Table 7)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
import torch

from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, Proposer, class_in

BEST_BOXES = 50
"""Of each class-agnostic query, before the largest is taken."""


class LargestBoxProposer:
    """Answers "every <name>" with the class-agnostic boxes, the largest first; other queries as the proposer does."""

    def __init__(self, inner: Proposer) -> None:
        self.name = f"largest box of {inner.name}"
        self.trained_on = inner.trained_on
        self.digest = hashlib.sha256(f"largest {inner.digest}".encode()).hexdigest()
        self._inner = inner

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """See `Proposer.propose`; the score of a named box is its share of the image, in [0, 1]."""
        named = [[class_in(text) is not None for text in texts] for texts in queries]
        asked = [
            [text for text, is_named in zip(texts, marks, strict=True) if not is_named]
            + list(CLASS_AGNOSTIC_QUERIES) * any(marks)
            for texts, marks in zip(queries, named, strict=True)
        ]
        answers = self._inner.propose(images, asked)
        found = []
        for image, marks, given in zip(images, named, answers, strict=True):
            plain = iter(given)
            largest = _largest_first(given[-len(CLASS_AGNOSTIC_QUERIES) :], image.shape[:2]) if any(marks) else None
            found.append([largest if is_named and largest is not None else next(plain) for is_named in marks])
        return found


def _largest_first(per_query: Sequence[Proposals], hw: tuple[int, int]) -> Proposals:
    height, width = hw
    boxes = torch.cat([p.boxes_xyxy[:BEST_BOXES] for p in per_query]).float()
    inside = torch.stack([boxes[:, 0::2].clamp(0, width), boxes[:, 1::2].clamp(0, height)], dim=2)
    share = (inside[:, 1] - inside[:, 0]).clamp(min=0).prod(dim=1) / (height * width)
    order = share.sort(descending=True, stable=True).indices
    return Proposals(boxes_xyxy=boxes[order], scores=share[order])
