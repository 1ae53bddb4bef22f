"""Text to regions: the stored crop embeddings that lie nearest to a text embedding."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from torch import Tensor

from ovbridge.errors import StoreError
from ovbridge.label_store.store import LabelStore
from ovbridge.label_store.table import read_settled

LISTS_READ = 32
MEASURED_AGAIN = 10


@dataclass(frozen=True, kw_only=True)
class RegionHit:
    """One region found."""

    image_key: str
    box_xyxy: tuple[float, float, float, float]
    """Pixels of the original image."""
    similarity: float
    """Cosine between the text and the region, -1 to 1."""
    objectness: float
    """The proposer's score."""

    def to_json(self) -> dict[str, object]:
        """For printing."""
        return {
            "image": self.image_key,
            "box_xyxy": [round(v, 2) for v in self.box_xyxy],
            "similarity": round(self.similarity, 4),
            "objectness": round(self.objectness, 4),
        }


def index_regions(store: LabelStore) -> None:
    """Make (or make anew) the vector index of the regions; raises StoreError where there are too few of them."""
    store.manifest("regions")
    store.make_vector_index("regions", "embedding")


def search_regions(store: LabelStore, query_D: Tensor, *, top: int = 20) -> list[RegionHit]:
    """The `top` regions nearest to `query_D` [D] by cosine, best first; all are compared unless there is an index.

    Raises StoreError if the store has no regions or another embedding width.
    """
    manifest = store.manifest("regions")
    if manifest.embedding_dim != len(query_D):
        raise StoreError(
            f"regions in {store.path} have {manifest.embedding_dim} values, the query has {len(query_D)}: "
            f"use the encoder that made them, {manifest.encoder!r}"
        )
    if not store.done_keys("regions"):
        return []
    # Cosine ignores length; a unit vector cannot overflow half precision.
    query = (query_D / query_D.norm().clamp(min=1e-12)).cpu().numpy().astype(np.float16)
    nearest = {
        "column": "embedding",
        "q": query,
        "k": top,
        "metric": "cosine",
        # With an index: how many of its lists are read, and how many more hits are measured exactly.
        "nprobes": LISTS_READ,
        "refine_factor": MEASURED_AGAIN,
    }
    found = read_settled(
        Path(store.path) / "regions.lance",
        lambda dataset: dataset.scanner(
            columns=["image_key", "box_xyxy", "score", "_distance"],
            nearest=nearest,
            filter="status = 'ok'",
            prefilter=True,
        ).to_table(),
    )
    rows = found.sort_by("_distance").to_pylist()
    return [
        RegionHit(
            image_key=row["image_key"],
            box_xyxy=tuple(row["box_xyxy"]),
            similarity=1.0 - row["_distance"],
            objectness=row["score"],
        )
        for row in rows
    ]
