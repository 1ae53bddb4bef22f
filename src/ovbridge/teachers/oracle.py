"""A proposer that knows the truth: for tests, and for an upper bound in ablations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovbridge.errors import DataError, TeacherError
from ovbridge.images import read_image
from ovbridge.structures import Proposals
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, class_query


@dataclass(frozen=True, kw_only=True)
class KnownObject:
    """One object of an image."""

    names: tuple[str, ...]
    """Name and synonyms."""
    box_xyxy: tuple[float, float, float, float]
    """Pixels of the image."""


def image_key(image: np.ndarray) -> str:
    """A hash of the pixels: how the oracle recognises an image."""
    return hashlib.sha256(np.ascontiguousarray(image).tobytes() + repr(image.shape).encode()).hexdigest()


class OracleProposer:
    """Returns true boxes, optionally moved and incomplete.

    A class-agnostic query means every object, "every <name>" those of that name or synonym, any other text none.
    """

    def __init__(
        self,
        objects: Mapping[str, Sequence[KnownObject]],
        *,
        recall: float = 1.0,
        jitter: float = 0.0,
        seed: int = 0,
        name: str = "oracle",
    ) -> None:
        """`objects` by `image_key`. Each object is known with probability `recall`; box sides move by a normal
        deviate of `jitter` times the box's size. Both follow from the seed and the image."""
        self.name = name
        self.trained_on = "the ground truth itself"
        self.digest = hashlib.sha256(repr((sorted(objects), recall, jitter, seed)).encode()).hexdigest()[:16]
        self._objects = objects
        self._recall, self._jitter, self._seed = recall, jitter, seed

    @classmethod
    def from_coco(
        cls, annotations: Path, images: Path, *, recall: float = 1.0, jitter: float = 0.0, seed: int = 0
    ) -> OracleProposer:
        """Knows all objects of a COCO instances file, crowds left out; reads every image once to recognise it."""
        try:
            record = json.loads(annotations.read_text())
            names = {c["id"]: (c["name"], *c.get("synonyms", ())) for c in record["categories"]}
            items = [item for item in record["annotations"] if not item.get("iscrowd")]
            keys = {i["id"]: image_key(read_image(images / i["file_name"])) for i in record["images"]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(f"{annotations} is not a COCO instances file ({error!r})") from error
        objects: dict[str, list[KnownObject]] = {key: [] for key in keys.values()}
        for item in items:
            objects[keys[item["image_id"]]].append(_known(item, names))
        return cls(objects, recall=recall, jitter=jitter, seed=seed)

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """See `Proposer.propose`; scores fall from 0.99 with decreasing box area."""
        return [
            [self._answer(known, text) for text in texts]
            for known, texts in zip([self._recognise(image) for image in images], queries, strict=True)
        ]

    def _recognise(self, image: np.ndarray) -> list[tuple[KnownObject, Tensor]]:
        key = image_key(image)
        if key not in self._objects:
            raise TeacherError(f"the oracle does not know this {image.shape[1]}x{image.shape[0]} image: give its truth")
        random = np.random.default_rng((self._seed, int(key[:15], 16)))
        known = []
        for item in self._objects[key]:
            keep, moves = random.random() < self._recall, random.standard_normal(4) * self._jitter
            x1, y1, x2, y2 = item.box_xyxy
            box = np.array(item.box_xyxy) + moves * [x2 - x1, y2 - y1, x2 - x1, y2 - y1]
            if keep:
                known.append((item, torch.tensor(box, dtype=torch.float32)))
        return sorted(known, key=lambda pair: -float((pair[1][2] - pair[1][0]) * (pair[1][3] - pair[1][1])))

    def _answer(self, known: Sequence[tuple[KnownObject, Tensor]], text: str) -> Proposals:
        boxes = [
            box
            for item, box in known
            if text in CLASS_AGNOSTIC_QUERIES or any(text == class_query(name) for name in item.names)
        ]
        return Proposals(
            boxes_xyxy=torch.stack(boxes) if boxes else torch.zeros(0, 4),
            scores=torch.linspace(0.99, 0.96, len(boxes)) if boxes else torch.zeros(0),
        )


def _known(item: dict[str, Any], names: Mapping[int, tuple[str, ...]]) -> KnownObject:
    x, y, w, h = item["bbox"]
    return KnownObject(names=names[item["category_id"]], box_xyxy=(x, y, x + w, y + h))
