"""The strict protocol: training that knows neither the novel names nor that they will be asked for.

The image-level labels are those of randomly drawn classes none of which is named like, or contains the name of, a
novel class; the classifier of training has the base classes and the drawn ones, not the novel ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.data.annotation_check import load_annotations
from ovbridge.data.caption_tags import make_tagger
from ovbridge.data.coco_synonyms import lvis_synonyms
from ovbridge.data.label_check import check_naming
from ovbridge.data.ovd_files import write_once
from ovbridge.data.splits import roles_of, vocabulary_of
from ovbridge.errors import ConfigError, DataError

TRAIN_FILE, LABELS_FILE = "instances_train_strict.json", "image_labels_strict.json"
FACTOR = 5.0
"""The strict vocabulary is this many times the default one (arXiv 2207.03482, final version)."""


def write_strict(
    annotations: Path, labels: Path, out: Path, *, classes: int | None = None, seed: int = 0
) -> dict[str, Any]:
    """Draw the classes and write the two files that strict training reads.

    Args:
        annotations: Boxes of the base classes, categories with roles (what `prepare coco-ovd` and `lvis-ovd` write).
        labels: COCO-like file whose images carry `pos_category_ids` (e.g. `prepare imagenet-lvis --words`).
        out: Folder for instances_train_strict.json and image_labels_strict.json.
        classes: Classes to draw; by default 5 for each base and novel class; fewer where there are fewer.
        seed: Fixes the draw.

    Returns:
        {"base_classes", "drawn_classes", "wanted_classes", "avoided_classes", "images", "dropped_images", "avoided"
        (first 20 names), "files"}.

    Raises:
        ConfigError: `classes` or `seed` cannot be drawn with.
        DataError: A file is missing or broken, no class is novel, or no class or image is left.
    """
    if seed < 0 or (classes is not None and classes < 1):
        raise ConfigError("--classes must be at least 1 and --seed must not be negative")
    boxes, base, novel = _boxes_of_base(annotations)
    base_ids = {c["id"] for c in base}
    tagged = _image_labels(labels)
    avoided = novel_names_in(tagged["categories"], novel)
    free = [c for c in tagged["categories"] if c["id"] not in avoided]
    if not free:
        raise DataError(f"every class of {labels} is named like a novel class of {annotations}: nothing can be drawn")
    wanted = classes if classes is not None else round(FACTOR * (len(base) + len(novel)))
    drawn = _draw(free, wanted, seed)
    base_named = {c["name"]: c["id"] for c in base}
    first = max(base_ids, default=0) + 1
    new = [c for c in drawn if c["name"] not in base_named]
    new_id = {c["id"]: first + k for k, c in enumerate(new)}
    target = {c["id"]: base_named.get(c["name"], new_id.get(c["id"], 0)) for c in drawn}
    categories = base + [{**c, "id": new_id[c["id"]], "role": "unused"} for c in new]
    images = []
    for record in tagged["images"]:
        kept = sorted({target[c] for c in record.get("pos_category_ids", ()) if c in target})
        if kept:
            images.append({**_without_words(record), "pos_category_ids": kept})
    if not images:
        raise DataError(f"{labels}: no image is labelled with one of the {len(drawn)} drawn classes: draw more")
    files = [out / TRAIN_FILE, out / LABELS_FILE]
    boxed = [_of_base(_without_words(record), base_ids) for record in boxes["images"]]
    write_once(files[0], {**boxes, "images": boxed, "categories": categories})
    info = {"description": f"image labels of {len(drawn)} drawn classes, seed {seed}, no novel name among them"}
    write_once(files[1], {"info": info, "images": images, "annotations": [], "categories": categories})
    return {
        "base_classes": len(base),
        "drawn_classes": len(drawn),
        "wanted_classes": wanted,
        "avoided_classes": len(avoided),
        "avoided": sorted(str(c["name"]) for c in tagged["categories"] if c["id"] in avoided)[:20],
        "images": len(images),
        "dropped_images": len(tagged["images"]) - len(images),
        "files": [str(f) for f in files],
    }


def _boxes_of_base(annotations: Path) -> tuple[dict[str, Any], list[dict[str, Any]], list[dict[str, Any]]]:
    """(the file, its base classes, its novel classes); raises DataError where another class has a box."""
    boxes = load_annotations(annotations, federated=None)
    check_naming(boxes, str(annotations))
    vocabulary_of(boxes["categories"], str(annotations))
    roles = dict(zip((c["id"] for c in boxes["categories"]), roles_of(boxes["categories"]), strict=True))
    base = [{**c, "role": "base"} for c in boxes["categories"] if roles[c["id"]] == "base"]
    novel = [c for c in boxes["categories"] if roles[c["id"]] == "novel"]
    if not novel:
        raise DataError(
            f"{annotations}: no class is novel, so there is nothing to avoid: give the file that 'ovbridge prepare' "
            "wrote for training"
        )
    base_ids = {c["id"] for c in base}
    stray = next((a for a in boxes["annotations"] if a["category_id"] not in base_ids), None)
    if stray is not None:
        raise DataError(
            f"{annotations}: annotation {stray['id']} is of category {stray['category_id']}, which is not base: "
            "give the file that 'ovbridge prepare' wrote for training"
        )
    return boxes, base, novel


def _image_labels(labels: Path) -> dict[str, Any]:
    tagged = load_annotations(labels, boxes=False, federated=None)
    if not any("pos_category_ids" in i for i in tagged["images"]):
        raise DataError(
            f"{labels}: no image carries pos_category_ids: give image labels, as 'ovbridge prepare imagenet-lvis "
            "--words' writes them"
        )
    return tagged


def novel_names_in(categories: Sequence[Mapping[str, Any]], novel: Sequence[Mapping[str, Any]]) -> set[int]:
    """Ids of the categories one of whose names holds a novel name or synonym of it, in singular or plural."""
    names = [str(c["name"]) for c in novel]
    synonyms = {str(c["name"]): [*c.get("synonyms", ()), *lvis_synonyms(str(c["name"]))] for c in novel}
    tag = make_tagger(names, synonyms, "words")
    return {
        int(c["id"]) for c in categories if tag([str(n).replace("_", " ") for n in (c["name"], *c.get("synonyms", ()))])
    }


def _without_words(record: Mapping[str, Any]) -> dict[str, Any]:
    """An image without its labels and captions: captions may name anything, labels have other ids here."""
    return {k: v for k, v in record.items() if k not in ("captions", "pos_category_ids")}


def _of_base(record: Mapping[str, Any], base_ids: set[int]) -> dict[str, Any]:
    """An image whose lists of what was looked for (LVIS) name base classes alone, as the file has no others."""
    return {
        k: [c for c in v if c in base_ids] if k in ("neg_category_ids", "not_exhaustive_category_ids") else v
        for k, v in record.items()
    }


def _draw(categories: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    order = np.random.default_rng(seed).permutation(len(categories))[:count]
    return [categories[k] for k in sorted(order)]
