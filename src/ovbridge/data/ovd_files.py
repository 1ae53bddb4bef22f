"""The derived annotation files that `ovbridge prepare` writes: OV-COCO boxes and caption tags."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ovbridge.data.annotation_check import load_annotations, read_json
from ovbridge.data.caption_tags import TagRule
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.splits import roles_of, vocabulary_of
from ovbridge.errors import DataError
from ovbridge.vocabulary import Role

COCO_TRAIN_IMAGES, COCO_VAL_IMAGES = 118_287, 5_000
"""Images of the full COCO 2017 files; only these are compared with the known counts."""
KNOWN_TRAIN_IMAGES, KNOWN_VAL_IMAGES = 107_761, 4_836
"""Images of the OV-COCO files (Bansal split) by the ovr-cnn filter."""
KNOWN_TRAIN_IMAGE_CLASS_PAIRS = 233_681
"""Sum over classes of the images that hold the class, in the official category statistics of the train file."""

TRAIN_FILE, VAL_FILE = "instances_train2017_base.json", "instances_val2017_ovd.json"
TAGS_FILE = "captions_train2017_tags.json"


def write_coco_ovd(annotations_dir: Path, out: Path, *, allow_count_mismatch: bool = False) -> dict[str, Any]:
    """Filter COCO instances to the open-vocabulary split and write them under `out`.

    Train keeps the boxes of base classes, val those of base and novel ones; an image stays iff a box of it stays.
    All categories are kept, in id order, each with its role. A missing val file is skipped.

    Args:
        annotations_dir: Folder with instances_train2017.json and perhaps instances_val2017.json.
        out: Folder for the results; made if need be. Files that differ are never overwritten.
        allow_count_mismatch: Go on although full COCO gives other counts than the known ones.

    Returns:
        Counts: {"train": {"images", "annotations", "dropped_images", "image_class_pairs", "per_role"}, "val": ...,
        "known_counts": "match" | "mismatch" | "not full COCO"}.

    Raises:
        DataError: A file is missing or broken, no class is novel, or the counts differ from the known ones.
    """
    train_source, val_source = (annotations_dir / f"instances_{s}2017.json" for s in ("train", "val"))
    counts: dict[str, Any] = {}
    checked: list[bool] = []
    plan: tuple[tuple[str, Path, str, tuple[Role, ...]], ...] = (
        ("train", train_source, TRAIN_FILE, ("base",)),
        ("val", val_source, VAL_FILE, ("base", "novel")),
    )
    for split, source, name, kept_roles in plan:
        if split == "val" and not source.is_file():
            continue
        payload = load_annotations(source)
        kept = keep_roles(payload, kept_roles, str(source))
        if not any(c["role"] == "novel" for c in kept["categories"]):
            raise DataError(
                f"{source}: no category is novel, so no box would be held out (names that are not all COCO's are base "
                "unless told otherwise): give every category a 'role', base, novel or unused"
            )
        counts[split] = _counts(payload, kept)
        known = _known_match(split, len(payload["images"]), counts[split])
        if known is not None:
            checked.append(known)
        if known is False and not allow_count_mismatch:
            raise DataError(_mismatch_message(split, source, counts[split]))
        write_once(out / name, kept)
    counts["known_counts"] = "not full COCO" if not checked else "match" if all(checked) else "mismatch"
    return counts


def keep_roles(payload: Mapping[str, Any], roles: Sequence[Role], source: str) -> dict[str, Any]:
    """A copy with the annotations of some roles only, and the images that keep one."""
    vocabulary_of(payload["categories"], source)
    categories = sorted(payload["categories"], key=lambda c: int(c["id"]))
    categories = [{**c, "role": role} for c, role in zip(categories, roles_of(categories), strict=True)]
    kept_ids = {c["id"] for c in categories if c["role"] in roles}
    if not kept_ids:
        raise DataError(f"{source}: no category has the role {' or '.join(roles)}: nothing would be left")
    annotations = [a for a in payload["annotations"] if a["category_id"] in kept_ids]
    with_boxes = {a["image_id"] for a in annotations}
    return {
        **payload,
        "images": [i for i in payload["images"] if i["id"] in with_boxes],
        "annotations": annotations,
        "categories": categories,
    }


def write_caption_tags(
    annotations_dir: Path,
    out: Path,
    *,
    rule: TagRule = "paper",
    synonyms: Mapping[str, Sequence[str]] | None = None,
) -> dict[str, Any]:
    """Tag the images of captions_train2017.json with the classes that their captions name.

    Writes a COCO-like file whose images carry `pos_category_ids` and `captions`; images without a tag are left out.

    Args:
        annotations_dir: Folder with captions_train2017.json; categories come from instances_train2017.json beside it,
            else they are COCO's.
        out: Folder for the result.
        rule: See `caption_tags.TagRule`.
        synonyms: Class name → synonyms, by default the categories' own or LVIS's.

    Returns:
        Counts: {"images", "dropped_images", "tags", "per_class": {name: images}}.
    """
    source = annotations_dir / "captions_train2017.json"
    tagged = load_tagged_images(source, synonyms=synonyms, rule=rule)
    kept, vocabulary = tagged.with_labels(), tagged.vocabulary
    tags_of = {i.image_id: [vocabulary.category_ids[k] for k in i.class_ids] for i in kept.images}
    captions_of = {i.image_id: list(i.captions) for i in kept.images}
    images = [
        {**record, "pos_category_ids": tags_of[record["id"]], "captions": captions_of[record["id"]]}
        for record in read_json(source)["images"]
        if record["id"] in tags_of
    ]
    categories = [
        {"id": c, "name": n, "role": r}
        for c, n, r in zip(vocabulary.category_ids, vocabulary.names, vocabulary.roles, strict=True)
    ]
    info = {"description": f"classes named by captions, rule {rule!r}"}
    write_once(out / TAGS_FILE, {"info": info, "images": images, "annotations": [], "categories": categories})
    return {
        "images": len(kept),
        "dropped_images": len(tagged) - len(kept),
        "tags": sum(map(len, tags_of.values())),
        "per_class": dict(zip(vocabulary.names, kept.image_counts(), strict=True)),
    }


def write_once(path: Path, payload: Mapping[str, Any] | Sequence[Any]) -> None:
    """Write JSON aside and rename it; an equal file is left alone, a different one is never overwritten."""
    content = json.dumps(payload, separators=(",", ":")).encode()
    try:
        if path.exists():
            if path.read_bytes() == content:
                return
            raise DataError(f"{path} exists and differs from what would be written: remove it or choose another --out")
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(path.name + ".part")
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
    except OSError as error:
        raise DataError(f"{path} cannot be written ({error.strerror}): choose another --out") from None


def _counts(payload: Mapping[str, Any], kept: Mapping[str, Any]) -> dict[str, Any]:
    role_of = {c["id"]: c["role"] for c in kept["categories"]}
    return {
        "images": len(kept["images"]),
        "annotations": len(kept["annotations"]),
        "dropped_images": len(payload["images"]) - len(kept["images"]),
        "dropped_annotations": len(payload["annotations"]) - len(kept["annotations"]),
        "image_class_pairs": len({(a["image_id"], a["category_id"]) for a in kept["annotations"]}),
        "annotations_per_role": dict(Counter(role_of[a["category_id"]] for a in kept["annotations"])),
        "classes_per_role": dict(Counter(role_of.values())),
    }


def _known_match(split: str, source_images: int, counts: Mapping[str, Any]) -> bool | None:
    """Whether the known counts are met; None where the source is not a full COCO 2017 file."""
    if split == "train" and source_images == COCO_TRAIN_IMAGES:
        return (counts["images"], counts["image_class_pairs"]) == (KNOWN_TRAIN_IMAGES, KNOWN_TRAIN_IMAGE_CLASS_PAIRS)
    if split == "val" and source_images == COCO_VAL_IMAGES:
        return bool(counts["images"] == KNOWN_VAL_IMAGES)
    return None


def _mismatch_message(split: str, source: Path, counts: Mapping[str, Any]) -> str:
    known = (
        f"{KNOWN_TRAIN_IMAGES} with {KNOWN_TRAIN_IMAGE_CLASS_PAIRS} image-class pairs"
        if split == "train"
        else f"{KNOWN_VAL_IMAGES}"
    )
    return (
        f"{source} gives {counts['images']} images with {counts['image_class_pairs']} image-class pairs, OV-COCO has "
        f"{known}: fetch the file again, or pass --allow-count-mismatch"
    )
