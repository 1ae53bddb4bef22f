"""Which images a labelling command is about, and what is known to be in them."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

from ovbridge.data.image_labels import TaggedImages
from ovbridge.data.splits import vocabulary_of
from ovbridge.errors import DataError
from ovbridge.images import SUFFIXES
from ovbridge.labeling.labellers import CAPTION_THRESHOLD
from ovbridge.tar_members import is_there
from ovbridge.vocabulary import Vocabulary


class _HasFileName(Protocol):
    @property
    def file_name(self) -> str: ...


def image_keys_in(folder: Path) -> list[str]:
    """Images anywhere below `folder` as relative paths with forward slashes, sorted.

    Raises DataError if the folder is missing or holds none.
    """
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist: check --images")
    keys = sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES)
    if not keys:
        raise DataError(f"no image in {folder}: expected files that end in {', '.join(sorted(SUFFIXES))}")
    return keys


def check_images_belong(images: Iterable[_HasFileName], folder: Path, annotations: Path) -> None:
    """Raise DataError if `folder` holds none of the annotated images: the wrong folder, not bad images."""
    if not folder.is_dir():
        raise DataError(f"image folder {folder} does not exist: check --images")
    first = None
    for image in images:
        first = first or image.file_name
        if is_there(folder / image.file_name):
            return
    if first is not None:
        raise DataError(f"{folder} holds none of the images of {annotations}, for instance {first}: check --images")


def names_by_image(tagged: TaggedImages) -> dict[str, tuple[str, ...]]:
    """Image key → the names of its labels, of the images that have any."""
    names = tagged.vocabulary.names
    return {image.file_name: tuple(names[k] for k in image.class_ids) for image in tagged.images if image.class_ids}


def default_threshold(tagged: TaggedImages) -> float:
    """The paper's score threshold: 0.95 where labels were read out of captions, 0 where people gave them (§4)."""
    return CAPTION_THRESHOLD if any(image.captions for image in tagged.images) else 0.0


def vocabulary_in(annotations: Path) -> Vocabulary:
    """The classes of a COCO-format file, in order of category id."""
    from ovbridge.data.annotation_check import read_json

    payload = read_json(annotations)
    categories = payload.get("categories") if isinstance(payload, dict) else None
    if not categories or not all(isinstance(c, dict) and {"id", "name"} <= c.keys() for c in categories):
        raise DataError(f"{annotations} has no categories with id and name: give an instances file")
    return vocabulary_of(categories, str(annotations))
