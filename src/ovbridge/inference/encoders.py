"""What a detector asks of CLIP, or of whatever else turns names and crops into embeddings of one space."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from ovbridge.vocabulary import TextBank


class TextEncoder(Protocol):
    """Whatever turns names into the embeddings that the detector was trained against."""

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        """One row a name, not normalised."""


@runtime_checkable
class ImageEncoder(Protocol):
    """Its counterpart for pictures, in the same embedding space."""

    def embed_crops(self, crops: Sequence[np.ndarray[Any, Any]]) -> Tensor:
        """One row a crop, not normalised."""
