"""The vocabularies of the released detectors: 80 COCO classes, 1,203 LVIS v1 classes, or a list of names."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from ovbridge.errors import VocabularyError
from ovbridge.vocabulary.coco_names import COCO_OVD
from ovbridge.vocabulary.vocabulary import Role, Vocabulary


def _role_of_frequency(frequency: str) -> Role:
    # OV-LVIS: rare classes have no training boxes.
    return "novel" if frequency == "r" else "base"


@functools.cache
def lvis_v1() -> Vocabulary:
    """The LVIS v1 classes by id, names as the data set spells them; rare ones are novel, the others base."""
    text = resources.files("ovbridge.vocabulary").joinpath("lvis_v1_classes.txt").read_text(encoding="utf-8")
    rows = [line.split(" ", 2) for line in text.splitlines()]
    return Vocabulary(
        names=tuple(name for _, _, name in rows),
        roles=tuple(_role_of_frequency(frequency) for _, frequency, _ in rows),
        category_ids=tuple(int(category_id) for category_id, _, _ in rows),
    )


def released_vocabulary(num_classes: int, names_file: Path | None = None) -> Vocabulary:
    """The vocabulary of a classifier with `num_classes` columns.

    `names_file` overrules the known ones: a JSON list of records with `id` and `name` (and `frequency`), or plain
    text with one name a line. Raises VocabularyError where nothing of that size is known.
    """
    if names_file is not None:
        vocabulary = _read_names(names_file)
    elif num_classes == len(COCO_OVD):
        vocabulary = COCO_OVD
    elif num_classes == len(lvis_v1()):
        vocabulary = lvis_v1()
    else:
        raise VocabularyError(f"no known vocabulary has {num_classes} classes: give their names with --names FILE")
    if len(vocabulary) != num_classes:
        raise VocabularyError(f"{names_file} has {len(vocabulary)} names, the classifier {num_classes} classes")
    return vocabulary


def with_training_boxes(vocabulary: Vocabulary, has_boxes: tuple[bool, ...]) -> Vocabulary:
    """Roles corrected by what a classifier was trained on, [K] bool: a class with boxes is base, a base class
    without them novel."""
    if len(has_boxes) != len(vocabulary):
        return vocabulary

    def role(known: Role, boxes: bool) -> Role:
        if boxes:
            return "base"
        return "novel" if known == "base" else known

    return replace(vocabulary, roles=tuple(role(*pair) for pair in zip(vocabulary.roles, has_boxes, strict=True)))


def _read_names(path: Path) -> Vocabulary:
    try:
        text = path.read_text(encoding="utf-8")
        if not text.lstrip().startswith("["):
            return Vocabulary.of_names([line.strip() for line in text.splitlines() if line.strip()])
        records: list[dict[str, Any]] = sorted(json.loads(text), key=lambda record: int(record["id"]))
        return Vocabulary(
            names=tuple(str(record["name"]) for record in records),
            roles=tuple(_role_of_frequency(str(record.get("frequency", ""))) for record in records),
            category_ids=tuple(int(record["id"]) for record in records),
        )
    except (OSError, UnicodeDecodeError) as error:
        raise VocabularyError(f"{path} cannot be read ({error}): give a list of class names") from None
    except (ValueError, KeyError, TypeError) as error:
        raise VocabularyError(f"{path} is no list of records with id and name ({error})") from None
