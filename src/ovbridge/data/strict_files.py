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
from ovbridge.data.ovd_files import write_once
from ovbridge.data.splits import roles_of, vocabulary_of
from ovbridge.errors import DataError

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
        DataError: A file is missing or broken, or no class is left.
    """
    boxes = load_annotations(annotations, federated=None)
    vocabulary_of(boxes["categories"], str(annotations))
    roles = dict(zip((c["id"] for c in boxes["categories"]), roles_of(boxes["categories"]), strict=True))
    base = [{**c, "role": "base"} for c in boxes["categories"] if roles[c["id"]] == "base"]
    novel = [c for c in boxes["categories"] if roles[c["id"]] == "novel"]
    base_ids = {c["id"] for c in base}
    stray = next((a for a in boxes["annotations"] if a["category_id"] not in base_ids), None)
    if stray is not None:
        raise DataError(
            f"{annotations}: annotation {stray['id']} is of category {stray['category_id']}, which is not base: "
            "give the file that 'ovbridge prepare' wrote for training"
        )
    tagged = load_annotations(labels, boxes=False, federated=None)
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
            # Captions may name anything, so they do not travel on.
            images.append({**{k: v for k, v in record.items() if k != "captions"}, "pos_category_ids": kept})
    files = [out / TRAIN_FILE, out / LABELS_FILE]
    write_once(files[0], {**boxes, "categories": categories})
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


def novel_names_in(categories: Sequence[Mapping[str, Any]], novel: Sequence[Mapping[str, Any]]) -> set[int]:
    """Ids of the categories one of whose names holds a novel name or synonym of it, in singular or plural."""
    names = [str(c["name"]) for c in novel]
    synonyms = {str(c["name"]): [*c.get("synonyms", ()), *lvis_synonyms(str(c["name"]))] for c in novel}
    tag = make_tagger(names, synonyms, "words")
    return {
        int(c["id"]) for c in categories if tag([str(n).replace("_", " ") for n in (c["name"], *c.get("synonyms", ()))])
    }


def _draw(categories: Sequence[dict[str, Any]], count: int, seed: int) -> list[dict[str, Any]]:
    order = np.random.default_rng(seed).permutation(len(categories))[:count]
    return [categories[k] for k in sorted(order)]
