"""What can be wrong with image-level labels, captions and synonyms: every fault named by the id it sits on.

`annotation_check.faults` asks this of every file that need not hold boxes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ovbridge.data.numbers import is_id
from ovbridge.errors import DataError


def carries_labels(payload: Any) -> bool:
    """Whether a parsed file is one of captions or image-level labels, by the keys of its records."""
    return any("pos_category_ids" in i or "captions" in i for i in _records(payload, "images")) or any(
        "caption" in a for a in _records(payload, "annotations")
    )


def check_naming(payload: Mapping[str, Any], source: str) -> None:
    """Raise DataError, prefixed with `source`, for the first of `naming_faults`."""
    for fault in naming_faults(payload):
        raise DataError(f"{source}: {fault}")


def label_faults(payload: Mapping[str, Any]) -> Iterator[str]:
    """Labels, captions and synonyms that cannot be read as what they are meant to be."""
    yield from naming_faults(payload)
    for image in _records(payload, "images"):
        captions = image.get("captions", [])
        if not _are_texts(captions):
            yield f"image {image.get('id')} has captions {_short(captions)}: a list of texts is needed"
    for position, annotation in enumerate(payload.get("annotations", ())):
        if not isinstance(annotation, dict):
            yield f"annotation number {position} is {_short(annotation)}, not an object"
        elif "caption" in annotation:
            yield from _caption_faults(annotation)


def naming_faults(payload: Mapping[str, Any]) -> Iterator[str]:
    """Faults in what names classes beside boxes: the synonyms of categories and the labels of images."""
    for category in _records(payload, "categories"):
        synonyms = category.get("synonyms", [])
        if not _are_texts(synonyms):
            yield f"category {category.get('id')} has synonyms {_short(synonyms)}: a list of words is needed"
    labelled = [image for image in _records(payload, "images") if "pos_category_ids" in image]
    if labelled and not payload.get("categories"):
        yield "images carry pos_category_ids but there are no 'categories' to look them up in"
        return
    known = {c["id"] for c in _records(payload, "categories") if is_id(c.get("id"))}
    for image in labelled:
        labels = image["pos_category_ids"]
        if not isinstance(labels, list):
            yield f"image {image.get('id')} has pos_category_ids {_short(labels)}: a list of category ids is needed"
            continue
        for label in labels:
            if not is_id(label) or label not in known:
                yield f"image {image.get('id')} has label {_short(label)}, which is not in 'categories'"
                break


def _caption_faults(annotation: Mapping[str, Any]) -> Iterator[str]:
    caption, image_id = annotation["caption"], annotation.get("image_id")
    if not isinstance(caption, str):
        yield f"annotation {annotation.get('id')} has caption {_short(caption)}: a text is needed"
    if not is_id(image_id):
        yield f"annotation {annotation.get('id')} has image_id {_short(image_id)}: an integer is needed"


def _records(payload: Any, key: str) -> Iterator[dict[str, Any]]:
    """The objects in one of the lists of a file that may not have it."""
    records = payload.get(key) if isinstance(payload, dict) else None
    return (r for r in records if isinstance(r, dict)) if isinstance(records, list) else iter(())


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _short(value: Any) -> str:
    """A value as Python writes it, cut to what a line can hold."""
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
