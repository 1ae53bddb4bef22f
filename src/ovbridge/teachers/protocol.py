"""What a teacher must offer to the labelling commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from torch import Tensor

from ovbridge.structures import Proposals
from ovbridge.vocabulary import TextBank

CLASS_AGNOSTIC_QUERIES = (
    "all objects",
    "all entities",
    "all visible objects and entities",
    "all obscure objects and entities",
)
"""The four queries whose boxes, merged by NMS, are the class-agnostic proposals of the paper's released code."""


def class_query(name: str) -> str:
    """The class-specific query of §3.2, "every <name>"; underscores become spaces."""
    return f"every {name.replace('_', ' ')}"


class Proposer(Protocol):
    """Finds boxes in an image for free-text queries."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def trained_on(self) -> str:
        """Which data and which names its training saw (the leak audit reads this)."""
        ...

    @property
    def digest(self) -> str:
        """A hash of its weights."""
        ...

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """Proposals indexed [image][query], best first, in pixels of the image given.

        `images` are [H, W, 3] uint8 RGB; `queries[i]` are the texts for `images[i]`.
        """
        ...


class RegionEncoder(Protocol):
    """The image side of CLIP."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def digest(self) -> str:
        """A hash of its weights."""
        ...

    @property
    def embedding_dim(self) -> int:
        """D, the width of an embedding."""
        ...

    def embed_crops(self, crops: Sequence[np.ndarray]) -> Tensor:
        """Raw (not normalised) embeddings [N, D] of [H, W, 3] uint8 RGB crops of any size."""
        ...


class TextEncoder(Protocol):
    """The text side of CLIP."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def digest(self) -> str:
        """A hash of its weights."""
        ...

    @property
    def embedding_dim(self) -> int:
        """D, the width of an embedding."""
        ...

    def embed_names(self, names: Sequence[str], templates: Sequence[str] = ("a photo of a {}",)) -> TextBank:
        """The text bank of `names`: each row is the mean over `templates`."""
        ...
