"""What is done with one batch of images: the RKD and the PIS labeller, and the manifest each writes under."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
import torch

from ovbridge.label_store import Manifest, NamedBoxes
from ovbridge.labeling.pseudo_boxes import SelectionConfig, best_box, class_agnostic
from ovbridge.labeling.region_embeddings import CropRule, embed_boxes
from ovbridge.structures import Proposals, RegionTargets
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, Proposer, RegionEncoder, class_query

CAPTION_THRESHOLD = 0.95
"""PIS boxes of captioned images count from this score of MAVL on (§4 of arXiv 2207.03482)."""


class Labeller(Protocol):
    """Labels a batch of images."""

    @property
    def manifest(self) -> Manifest:
        """How these labels are made."""
        ...

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> Sequence[RegionTargets | NamedBoxes]:
        """The labels of each image, boxes in pixels of the image given."""
        ...


@dataclass(frozen=True, kw_only=True)
class RegionLabeller:
    """RKD: the K best class-agnostic boxes of an image, each with the CLIP embedding of its crop."""

    proposer: Proposer
    encoder: RegionEncoder
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    crop_rule: CropRule = "tight"
    queries: tuple[str, ...] = CLASS_AGNOSTIC_QUERIES

    @property
    def manifest(self) -> Manifest:
        """How these labels are made."""
        return Manifest(
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
        )

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> list[RegionTargets]:
        """Region targets of each image."""
        proposals = self.proposer.propose(images, [self.queries] * len(images))
        chosen = [
            class_agnostic(found, image.shape[0], image.shape[1], self.selection)
            for found, image in zip(proposals, images, strict=True)
        ]
        embeddings = embed_boxes(images, [c.boxes_xyxy for c in chosen], self.encoder, self.crop_rule)
        return [
            RegionTargets(boxes_xyxy=c.boxes_xyxy, embeddings=e, scores=c.scores)
            for c, e in zip(chosen, embeddings, strict=True)
        ]


@dataclass(frozen=True, kw_only=True)
class TagLabeller:
    """PIS: for every label of an image, the best box of "every <name>"."""

    proposer: Proposer
    names_of: Mapping[str, Sequence[str]]
    """Image key → the names known to be in the image."""
    threshold: float = CAPTION_THRESHOLD
    """A box is kept if its score is above this."""
    paper_exact: bool = False
    """Boxes truncated to whole pixels and not clipped to the image, as in the released scripts."""

    @property
    def manifest(self) -> Manifest:
        """How these labels are made."""
        return Manifest(
            table="tags",
            proposer=self.proposer.name,
            proposer_digest=self.proposer.digest,
            proposer_trained_on=self.proposer.trained_on,
            queries=(class_query("{}"),),
            selection={"threshold": self.threshold, "paper_exact": self.paper_exact},
        )

    def label(self, image_keys: Sequence[str], images: Sequence[np.ndarray]) -> list[NamedBoxes]:
        """Named boxes of each image; none for a label whose box is not trusted."""
        names = [list(dict.fromkeys(self.names_of[key])) for key in image_keys]
        proposals = self.proposer.propose(images, [[class_query(n) for n in per_image] for per_image in names])
        return [
            self._keep(per_image, found, *image.shape[:2])
            for per_image, found, image in zip(names, proposals, images, strict=True)
        ]

    def _keep(self, names: Sequence[str], found: Sequence[Proposals], height: int, width: int) -> NamedBoxes:
        best = [
            best_box(proposals, height, width, threshold=self.threshold, paper_exact=self.paper_exact)
            for proposals in found
        ]
        kept = [(name, *box_and_score) for name, box_and_score in zip(names, best, strict=True) if box_and_score]
        return NamedBoxes(
            names=tuple(name for name, _, _ in kept),
            boxes_xyxy=torch.stack([box for _, box, _ in kept]) if kept else torch.zeros(0, 4),
            scores=torch.tensor([score for _, _, score in kept], dtype=torch.float32),
        )
