"""The classes of a fine-tuned detector: those of its checkpoint, then the user's new ones.

Legend: K classes, D embedding.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovbridge.console import stderr
from ovbridge.data.annotation_check import is_flat, load_annotations
from ovbridge.data.splits import vocabulary_of
from ovbridge.detector import DetectorMetadata
from ovbridge.errors import DataError
from ovbridge.inference import Detector
from ovbridge.vocabulary import Role, TextBank, Vocabulary


@dataclass(frozen=True, kw_only=True)
class UserClasses:
    """The merged classes and the user's annotations in their terms."""

    vocabulary: Vocabulary
    """The checkpoint's classes in their order, then the new ones; category ids are the positions, from 1."""
    bank: TextBank
    """Text embeddings in the order of `vocabulary`."""
    given: tuple[str, ...]
    """The classes of the user's file that have boxes to learn from."""
    added: tuple[str, ...]
    """Those of them that the checkpoint did not have."""
    payload: dict[str, Any]
    """The user's file with the category ids of `vocabulary`."""


def merge_classes(detector: Detector, annotations: Path) -> UserClasses:
    """Read the user's boxes and place their classes behind those of the checkpoint.

    Raises DataError for a file without boxes, TeacherError where a new name cannot be embedded.
    """
    metadata = detector.metadata
    payload = load_annotations(annotations)
    mine = vocabulary_of(payload["categories"], str(annotations))
    boxed = [a for a in payload["annotations"] if not a.get("iscrowd")]
    used = {a["category_id"] for a in boxed if not is_flat(a["bbox"])}
    flat = {a["category_id"] for a in boxed} - used
    given = tuple(n for n, c in zip(mine.names, mine.category_ids, strict=True) if c in used)
    for name, category in zip(mine.names, mine.category_ids, strict=True):
        if category in flat:
            stderr.print(f"note: {annotations}: {name!r} has no box with an area, so it is not taught")
    if not given:
        raise DataError(f"{annotations} has no box to learn from: draw some")
    added = tuple(name for name in given if name not in metadata.names)
    names = (*metadata.names, *added)
    labelled: Role = "base"
    roles = (*Vocabulary.from_json(list(metadata.vocabulary)).roles, *(labelled for _ in added))
    vocabulary = Vocabulary(names=names, roles=roles, category_ids=tuple(range(1, len(names) + 1)))
    bank = TextBank(
        names=names,
        embeddings_KD=detector.text_rows(names),
        encoder=metadata.text_encoder,
        templates=metadata.templates,
    )
    new_id = {c: names.index(n) + 1 for n, c in zip(mine.names, mine.category_ids, strict=True) if n in given}
    merged = {
        **payload,
        "annotations": [
            {**a, "category_id": new_id[a["category_id"]]} for a in payload["annotations"] if a["category_id"] in new_id
        ],
        "categories": vocabulary_records(vocabulary),
    }
    return UserClasses(vocabulary=vocabulary, bank=bank, given=given, added=added, payload=merged)


def vocabulary_records(vocabulary: Vocabulary) -> list[dict[str, Any]]:
    """COCO categories of a vocabulary."""
    return [
        {"id": c, "name": n, "role": r}
        for n, r, c in zip(vocabulary.names, vocabulary.roles, vocabulary.category_ids, strict=True)
    ]


def write_annotations(path: Path, payload: dict[str, Any]) -> None:
    """Write a COCO file aside, then rename it."""
    aside = path.with_name(path.name + ".part")
    aside.write_text(json.dumps(payload), encoding="utf-8")
    aside.replace(path)


def metadata_of(before: DetectorMetadata, classes: UserClasses, *, extra: dict[str, Any]) -> DetectorMetadata:
    """What a fine-tuned checkpoint says of itself."""
    return DetectorMetadata(
        stage=before.stage,
        vocabulary=tuple(classes.vocabulary.to_json()),
        text_encoder=before.text_encoder,
        templates=before.templates,
        recipe=f"{before.recipe} + finetune",
        versions=before.versions,
        extra={**before.extra, **extra},
    )
