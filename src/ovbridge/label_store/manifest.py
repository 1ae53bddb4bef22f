"""Who made a label table and how: the part of a store that makes its labels comparable.

One JSON file beside each Lance dataset. A run may only append to a table whose manifest says the same.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ovbridge.errors import StoreError
from ovbridge.label_store.schema import Table

SHOWN_DIGEST = 12
"""Digits of a digest that an error message shows."""


@dataclass(frozen=True, kw_only=True)
class ImageSet:
    """One folder that labels were made for."""

    root: str
    """Absolute path of the folder at the time."""
    images: int
    """How many images were asked for."""
    digest: str
    """sha256 of the sorted image keys."""

    @classmethod
    def of(cls, root: Path, image_keys: Sequence[str]) -> ImageSet:
        """Describe `image_keys` under `root`."""
        digest = hashlib.sha256("\n".join(sorted(image_keys)).encode()).hexdigest()
        return cls(root=str(root.resolve()), images=len(image_keys), digest=digest)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """How the rows of one table were made. Absent parts (a tag table has no encoder) are None."""

    table: Table
    proposer: str
    """Name of the proposer."""
    proposer_digest: str
    """sha256 of its weights."""
    proposer_trained_on: str
    """What its weights have seen: the leak audit."""
    queries: tuple[str, ...]
    """Text queries, e.g. "all objects"; "every {}" for tags."""
    selection: dict[str, int | float | bool]
    """Which proposals were kept: per-query count, NMS threshold, top K, score threshold and so on."""
    encoder: str | None = None
    """Name of the image encoder that embedded the crops."""
    encoder_digest: str | None = None
    """sha256 of its weights."""
    embedding_dim: int | None = None
    """Embedding width D."""
    crop_rule: str | None = None
    """How a box became a crop: tight, square, ensemble-1.5 or masked."""
    precision: str | None = None
    """What the teachers computed in: fp32, bf16 or fp16; None in stores that do not say."""
    image_sets: tuple[ImageSet, ...] = ()
    """The folders labelled so far. May grow: it is not compared."""

    def check_same_origin(self, other: Manifest, store: Path) -> None:
        """Raise StoreError naming the first thing in which `other` differs, and the remedy.

        Weights are compared by digest: what a file is called does not matter.
        """
        for name, (mine, theirs) in self._origins(other).items():
            if mine != theirs:
                raise StoreError(
                    f"{self.table} in {store} were made with {name} {mine} and this run has {theirs}: "
                    "use the same, or another --store"
                )

    def _origins(self, other: Manifest) -> dict[str, tuple[object, object]]:
        plain = ("crop_rule", "embedding_dim", "queries")
        settings = dict.fromkeys((*self.selection, *other.selection))
        return {
            "proposer": _weights(self.proposer, self.proposer_digest, other.proposer, other.proposer_digest),
            "image encoder": _weights(self.encoder, self.encoder_digest, other.encoder, other.encoder_digest),
            **{name.replace("_", " "): (getattr(self, name), getattr(other, name)) for name in plain},
            **({"precision": (self.precision, other.precision)} if self.precision and other.precision else {}),
            **{name.replace("_", " "): (self.selection.get(name), other.selection.get(name)) for name in settings},
        }

    def with_image_set(self, image_set: ImageSet) -> Manifest:
        """The manifest with `image_set` noted once."""
        known = image_set in self.image_sets
        return self if known else replace(self, image_sets=(*self.image_sets, image_set))

    def save(self, path: Path) -> None:
        """Write JSON, aside and then renamed."""
        aside = path.with_name(path.name + ".part")
        aside.write_text(json.dumps(asdict(self), indent=2) + "\n")
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> Manifest:
        """Read what `save` wrote; raises StoreError where it is damaged."""
        try:
            record: dict[str, Any] = json.loads(path.read_text())
            record["queries"] = tuple(record["queries"])
            record["image_sets"] = tuple(ImageSet(**s) for s in record["image_sets"])
            return cls(**record)
        except (OSError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{path} is not a label manifest ({error}): label into a new --store") from None


def _weights(mine: str | None, digest: str | None, theirs: str | None, other: str | None) -> tuple[str, str]:
    if digest == other:
        return "", ""
    return f"{mine!r} ({(digest or '')[:SHOWN_DIGEST]})", f"{theirs!r} ({(other or '')[:SHOWN_DIGEST]})"
