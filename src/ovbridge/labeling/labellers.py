"""What is done with one batch of images: the RKD labeller, the PIS labeller, and both in one pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ovbridge.errors import ConfigError
from ovbridge.label_store import Manifest, NamedBoxes, Table
from ovbridge.labeling.pseudo_boxes import SelectionConfig, best_box, class_agnostic
from ovbridge.labeling.region_embeddings import CropRule, check_crop_rule, embed_boxes
from ovbridge.structures import Proposals, RegionTargets
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, AnyProposer, RegionEncoder, class_query, propose

CAPTION_THRESHOLD = 0.95
"""PIS boxes of captioned images count from this score of MAVL on (§4 of arXiv 2207.03482)."""

Labels = Mapping[Table, RegionTargets | NamedBoxes]
"""The labels of one image, by the table they belong to; boxes in pixels of the image given."""


class Labeller(Protocol):
    """Labels a batch of images for one table or for several."""

    @property
    def manifests(self) -> Sequence[Manifest]:
        """How these labels are made, one manifest a table."""
        ...

    def tables_of(self, image_key: str) -> Sequence[Table]:
        """The tables that an image gets labels in."""
        ...

    def asked_of(self, image_key: str) -> tuple[str, ...] | None:
        """The names that the tags of an image are asked for, sorted; None where it gets no tags."""
        ...

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> Sequence[Labels]:
        """The labels of each image for all of its tables."""
        ...


@dataclass(frozen=True, kw_only=True)
class RegionLabeller:
    """RKD: the K best class-agnostic boxes of an image, each with the CLIP embedding of its crop."""

    proposer: AnyProposer
    encoder: RegionEncoder
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    crop_rule: CropRule = "tight"
    queries: tuple[str, ...] = CLASS_AGNOSTIC_QUERIES
    precision: str | None = None
    """What the teachers compute in, for the manifest; None where nobody said."""

    def __post_init__(self) -> None:
        check_crop_rule(self.crop_rule, self.encoder)

    @property
    def manifests(self) -> tuple[Manifest]:
        """How these labels are made."""
        return (
            Manifest(
                table="regions",
                proposer=self.proposer.name,
                proposer_digest=self.proposer.digest,
                proposer_trained_on=self.proposer.trained_on,
                encoder=self.encoder.name,
                encoder_digest=self.encoder.digest,
                embedding_dim=self.encoder.embedding_dim,
                crop_rule=self.crop_rule,
                queries=self.queries,
                selection=self.selection.summary(),
                precision=self.precision,
            ),
        )

    def tables_of(self, image_key: str) -> tuple[Table]:
        """Every image gets regions."""
        return ("regions",)

    def asked_of(self, image_key: str) -> None:
        """Regions are asked for no names."""
        return

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> list[Labels]:
        """Region targets of each image."""
        found = propose(self.proposer, image_keys, images, [self.queries] * len(images))
        return [{"regions": targets} for targets in self.targets(images, found)]

    def targets(self, images: Sequence[np.ndarray], found: Sequence[Sequence[Proposals]]) -> list[RegionTargets]:
        """Region targets out of what the proposer found for `queries`."""
        chosen = [
            class_agnostic(per_query, image.shape[0], image.shape[1], self.selection)
            for per_query, image in zip(found, images, strict=True)
        ]
        embeddings = embed_boxes(images, [c.boxes_xyxy for c in chosen], self.encoder, self.crop_rule)
        return [
            RegionTargets(boxes_xyxy=c.boxes_xyxy, embeddings=e, scores=c.scores)
            for c, e in zip(chosen, embeddings, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class TagLabeller:
    """PIS: for every label of an image, the best box of "every <name>"."""

    proposer: AnyProposer
    names_of: Mapping[str, Sequence[str]]
    """Image key → the names known to be in the image."""
    threshold: float = CAPTION_THRESHOLD
    """A box is kept if its score is above this."""
    size_weight: float = 0.0
    """How much a larger box is preferred: see `best_box`."""
    paper_exact: bool = False
    """Boxes truncated to whole pixels and not clipped to the image, as in the released scripts."""
    precision: str | None = None
    """What the proposer computes in, for the manifest; None where nobody said."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.threshold <= 1.0:
            raise ConfigError(f"threshold {self.threshold} is outside 0 to 1, where scores lie: 0.95 is the paper's")
        if not 0.0 <= self.size_weight <= 10.0:
            raise ConfigError(f"size weight {self.size_weight} is outside 0 to 10: 0 ranks boxes by score alone")

    @property
    def manifests(self) -> tuple[Manifest]:
        """How these labels are made."""
        return (
            Manifest(
                table="tags",
                proposer=self.proposer.name,
                proposer_digest=self.proposer.digest,
                proposer_trained_on=self.proposer.trained_on,
                queries=(class_query("{}"),),
                selection={"threshold": self.threshold, "paper_exact": self.paper_exact}
                # Stores of before this setting go on.
                | ({"size_weight": self.size_weight} if self.size_weight else {}),
                precision=self.precision,
            ),
        )

    def tables_of(self, image_key: str) -> tuple[Table, ...]:
        """An image of which nothing is known has no row."""
        return ("tags",) if image_key in self.names_of else ()

    def asked_of(self, image_key: str) -> tuple[str, ...] | None:
        """The names known of an image."""
        return tuple(sorted(self._names(image_key))) if image_key in self.names_of else None

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> list[Labels]:
        """Named boxes of each image; none for a label whose box is not trusted."""
        found = propose(self.proposer, image_keys, images, [self.queries(key) for key in image_keys])
        return [{"tags": boxes} for boxes in self.named_boxes(image_keys, images, found)]

    def queries(self, image_key: str) -> list[str]:
        """One query a name of the image."""
        return [class_query(name) for name in self._names(image_key)]

    def named_boxes(
        self, image_keys: Sequence[str], images: Sequence[np.ndarray], found: Sequence[Sequence[Proposals]]
    ) -> list[NamedBoxes]:
        """Named boxes out of what the proposer found for `queries`."""
        return [
            self._keep(self._names(key), per_query, *image.shape[:2])
            for key, per_query, image in zip(image_keys, found, images, strict=True)
        ]

    def _names(self, image_key: str) -> list[str]:
        return list(dict.fromkeys(self.names_of[image_key]))

    def _keep(self, names: Sequence[str], found: Sequence[Proposals], height: int, width: int) -> NamedBoxes:
        best = [
            best_box(
                proposals,
                height,
                width,
                threshold=self.threshold,
                size_weight=self.size_weight,
                paper_exact=self.paper_exact,
            )
            for proposals in found
        ]
        kept = [(name, *box_and_score) for name, box_and_score in zip(names, best, strict=True) if box_and_score]
        return NamedBoxes(
            names=tuple(name for name, _, _ in kept),
            boxes_xyxy=torch.stack([box for _, box, _ in kept]) if kept else torch.zeros(0, 4),
            scores=torch.tensor([score for _, _, score in kept], dtype=torch.float32),
        )


@dataclass(frozen=True, kw_only=True)
class JointLabeller:
    """RKD and PIS in one pass: an image is encoded once and all of its queries are answered together.

    The labels are those of the two labellers by themselves; raises ConfigError if their proposers differ.
    """

    regions: RegionLabeller
    tags: TagLabeller

    def __post_init__(self) -> None:
        if self.regions.proposer is not self.tags.proposer:
            raise ConfigError("regions and tags in one pass need one proposer: label them one after the other")

    @property
    def manifests(self) -> tuple[Manifest, ...]:
        """How these labels are made, regions first."""
        return (*self.regions.manifests, *self.tags.manifests)

    def tables_of(self, image_key: str) -> tuple[Table, ...]:
        """Every image gets regions, one with known names also tags."""
        return (*self.regions.tables_of(image_key), *self.tags.tables_of(image_key))

    def asked_of(self, image_key: str) -> tuple[str, ...] | None:
        """The names known of an image."""
        return self.tags.asked_of(image_key)

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> list[Labels]:
        """Region targets of each image, and named boxes of those with known names."""
        agnostic, count = self.regions.queries, len(self.regions.queries)
        named = [n for n, key in enumerate(image_keys) if self.tags.tables_of(key)]
        queries = [agnostic if n not in named else (*agnostic, *self.tags.queries(k)) for n, k in enumerate(image_keys)]
        found = propose(self.regions.proposer, image_keys, images, queries)
        labels: list[dict[Table, RegionTargets | NamedBoxes]] = [
            {"regions": targets} for targets in self.regions.targets(images, [f[:count] for f in found])
        ]
        boxes = self.tags.named_boxes(
            [image_keys[n] for n in named], [images[n] for n in named], [found[n][count:] for n in named]
        )
        for n, per_image in zip(named, boxes, strict=True):
            labels[n]["tags"] = per_image
        return list(labels)
