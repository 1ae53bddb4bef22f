"""Looking over a data set before anything is run on it: what it is, what is wrong, what will be left out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ovbridge.console import track
from ovbridge.data.annotation_check import faults, federated_image, image_file_name, notes, read_json
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.image_reading import image_hw, read_image
from ovbridge.data.splits import vocabulary_of
from ovbridge.errors import DataError
from ovbridge.images import SUFFIXES


@dataclass(kw_only=True)
class Inspection:
    """What was found at a path."""

    kind: str
    """What it is, e.g. "annotations" or "images"."""
    facts: dict[str, Any] = field(default_factory=dict)
    """Counts and properties."""
    faults: list[str] = field(default_factory=list)
    """What makes it unusable, each naming the thing at fault."""
    notes: list[str] = field(default_factory=list)
    """What will be left out or mended."""


def is_dataset(folder: Path) -> bool:
    """Whether a folder is laid out like COCO: annotations/*.json beside image folders."""
    return any((folder / "annotations").glob("*.json"))


def image_paths(folder: Path) -> list[Path]:
    """Every image file under a folder, sorted."""
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


def inspect_annotations(path: Path) -> Inspection:
    """Check one JSON file: COCO or LVIS boxes, captions, or image-level labels."""
    try:
        payload = read_json(path)
    except DataError as error:
        return Inspection(kind="file", faults=[str(error)])
    annotations = payload.get("annotations") if isinstance(payload, dict) else None
    tagged = isinstance(payload, dict) and any(
        isinstance(i, dict) and ("pos_category_ids" in i or "captions" in i) for i in payload.get("images") or ()
    )
    captioned = isinstance(annotations, list) and any(isinstance(a, dict) and "caption" in a for a in annotations)
    return _inspect_labels(path, payload) if tagged or captioned else _inspect_boxes(path, payload)


def inspect_images(paths: Sequence[Path]) -> Inspection:
    """Decode every image and name those that cannot be read."""
    found = Inspection(kind="images")
    sizes: Counter[str] = Counter()
    for path in track(paths, "decode", len(paths)):
        try:
            height, width = read_image(path).shape[:2]
            sizes["wide" if width > height else "high" if height > width else "square"] += 1
        except DataError as error:
            found.faults.append(str(error))
    found.facts = {"images": len(paths), **sizes}
    return found


def inspect_dataset(root: Path) -> Inspection:
    """Check every annotation file of a COCO-like folder, and that its images are there with the size it says.

    The images of annotations/instances_train2017*.json are looked for in train2017, and so on.
    """
    found = Inspection(kind="data set")
    for path in sorted((root / "annotations").glob("*.json")):
        part = inspect_annotations(path)
        found.facts[path.name] = part.facts
        found.faults += [f if str(path) in f else f"{path.name}: {f}" for f in part.faults]
        found.notes += [f"{path.name}: {n}" for n in part.notes]
        folder = next((f for f in sorted(root.iterdir()) if f.is_dir() and f"_{f.name}" in path.stem), None)
        if folder is not None and not part.faults:
            found.faults += _image_file_faults(path, folder)
    return found


def _inspect_boxes(path: Path, payload: Any) -> Inspection:
    found = Inspection(kind="annotations", faults=[f"{path}: {fault}" for fault in faults(payload)])
    if found.faults:
        return found
    try:
        vocabulary = vocabulary_of(payload["categories"], str(path))
    except DataError as error:
        found.faults.append(str(error))
        return found
    if federated_image(payload) is not None:
        found.kind = "LVIS annotations"
    role_of = dict(zip(vocabulary.category_ids, vocabulary.roles, strict=True))
    found.notes = list(notes(payload))
    found.facts = {
        "images": len(payload["images"]),
        "annotations": len(payload["annotations"]),
        "classes": dict(Counter(vocabulary.roles)),
        "boxes": dict(Counter(role_of[a["category_id"]] for a in payload["annotations"])),
    }
    return found


def _inspect_labels(path: Path, payload: Any) -> Inspection:
    found = Inspection(kind="image labels", faults=[f"{path}: {fault}" for fault in faults(payload, boxes=False)])
    if found.faults:
        return found
    try:
        tagged = load_tagged_images(path)
    except DataError as error:
        found.faults.append(str(error))
        return found
    unlabelled = sum(not i.class_ids for i in tagged.images)
    if unlabelled:
        found.notes.append(f"{unlabelled} images carry no label")
    found.facts = {
        "images": len(tagged),
        "labels": sum(len(i.class_ids) for i in tagged.images),
        "classes_named": sum(count > 0 for count in tagged.image_counts()),
    }
    return found


def _image_file_faults(annotations: Path, folder: Path) -> list[str]:
    found: list[str] = []
    for record in read_json(annotations)["images"]:
        image = folder / str(image_file_name(record))
        expected = (record["height"], record["width"])
        try:
            # A turned image also fits with its sides swapped, see `read_annotated`.
            if expected not in (actual := image_hw(image), actual[::-1]):
                found.append(
                    f"image {image} is {actual[1]}x{actual[0]}, {annotations.name} says {expected[1]}x{expected[0]}"
                )
        except DataError as error:
            found.append(str(error))
    return found
