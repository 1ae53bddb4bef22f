"""What a teacher must offer to the labelling commands."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

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


_EVERY = "every "


def class_query(name: str) -> str:
    """The class-specific query of §3.2, "every <name>"; underscores become spaces."""
    return f"{_EVERY}{name.replace('_', ' ')}"


def class_in(query: str) -> str | None:
    """The name in a query of `class_query` (with spaces); None for any other text."""
    return query.removeprefix(_EVERY) if query.startswith(_EVERY) else None


class UnknownImageError(LookupError):
    """A proposer that remembers has nothing of an image: no fault of its own, however many such images there are."""


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


@runtime_checkable
class StoredProposer(Protocol):
    """Knows boxes by the name of the image, not by its pixels: what somebody proposed before."""

    @property
    def name(self) -> str:
        """What the user called it."""
        ...

    @property
    def trained_on(self) -> str:
        """Which data and which names the training of its source saw (the leak audit reads this)."""
        ...

    @property
    def digest(self) -> str:
        """A hash of the boxes."""
        ...

    def look_up(
        self, image_keys: Sequence[str], images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]
    ) -> list[list[Proposals]]:
        """As `Proposer.propose`, for images at the paths `image_keys` below the image folder."""
        ...


AnyProposer = Proposer | StoredProposer


def propose(
    proposer: AnyProposer,
    image_keys: Sequence[str],
    images: Sequence[np.ndarray],
    queries: Sequence[Sequence[str]],
) -> list[list[Proposals]]:
    """Ask a proposer of either kind; see `Proposer.propose`."""
    if isinstance(proposer, StoredProposer):
        return proposer.look_up(image_keys, images, queries)
    return proposer.propose(images, queries)


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


@runtime_checkable
class MaskedRegionEncoder(Protocol):
    """An image encoder that can be told which part of a crop to look at."""

    def embed_masked_crops(self, crops: Sequence[np.ndarray], inner_boxes_xyxy: Sequence[Sequence[float]]) -> Tensor:
        """Raw embeddings [N, D] of square crops, read out of the patches that touch `inner_boxes` (crop pixels)."""
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
