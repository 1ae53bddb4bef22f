"""OV-LVIS out of the public LVIS v1 files: rare annotations removed, images kept, category statistics."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovbridge.data.annotation_check import load_annotations
from ovbridge.data.known_counts import against_known
from ovbridge.data.ovd_files import write_once
from ovbridge.errors import DataError

TRAIN_NAME, VAL_NAME = "lvis_v1_train.json", "lvis_v1_val.json"
KNOWN_TRAIN = {"images": 100_170, "annotations": 1_270_141, "removed_annotations": 5_257, "rare_classes": 337}
"""LVIS v1 train; annotations are the sums over the published category statistics."""
KNOWN_VAL = {"images": 19_809}


def write_lvis_ovd(annotations: Path, out: Path, *, allow_count_mismatch: bool = False) -> dict[str, Any]:
    """Remove the boxes of rare classes from a training file and write it with its category statistics.

    Every image stays, also one that has no box left (the paper's "lvis_v1_train_norare"). Written under `out`:
    STEM_norare.json and STEM_norare_cat_info.json (a list of categories with image_count and instance_count, 0 for
    rare ones). A val file is only looked over: OV-LVIS evaluates on all of it.

    Args:
        annotations: lvis_v1_train.json, or a folder with it and perhaps lvis_v1_val.json.
        out: Folder for the results; files that differ are never overwritten.
        allow_count_mismatch: Go on although a full LVIS gives other counts than the known ones.

    Returns:
        {"train": {"images", "annotations", "kept_annotations", "removed_annotations", "images_without_box",
        "rare_classes"}, "val": {"images"} where there is one, "files", "known_counts"}.

    Raises:
        DataError: A file is missing or broken, is not LVIS, or the counts differ from the known ones.
    """
    train_source = annotations / TRAIN_NAME if annotations.is_dir() else annotations
    payload = load_annotations(train_source, federated=True)
    kept = without_rare(payload, str(train_source))
    statistics = category_statistics(kept)
    boxed = {a["image_id"] for a in kept["annotations"]}
    counts: dict[str, Any] = {
        "train": {
            "images": len(kept["images"]),
            "annotations": len(payload["annotations"]),
            "kept_annotations": len(kept["annotations"]),
            "removed_annotations": len(payload["annotations"]) - len(kept["annotations"]),
            "images_without_box": len(kept["images"]) - len(boxed),
            "rare_classes": sum(c["frequency"] == "r" for c in kept["categories"]),
        }
    }
    verdicts = [
        against_known(
            counts["train"], KNOWN_TRAIN, train_source, size_key="images", allow_mismatch=allow_count_mismatch
        )
    ]
    val_source = annotations / VAL_NAME
    if annotations.is_dir() and val_source.is_file():
        counts["val"] = {"images": len(load_annotations(val_source, federated=True)["images"])}
        verdicts.append(
            against_known(counts["val"], KNOWN_VAL, val_source, size_key="images", allow_mismatch=allow_count_mismatch)
        )
    files = [out / f"{train_source.stem}_norare.json", out / f"{train_source.stem}_norare_cat_info.json"]
    write_once(files[0], kept)
    write_once(files[1], statistics)
    worst = next((v for v in ("mismatch", "sample") if v in verdicts), "match")
    return {**counts, "files": [str(f) for f in files], "known_counts": worst}


def without_rare(payload: Mapping[str, Any], source: str) -> dict[str, Any]:
    """A copy without the annotations of rare classes; raises DataError where a category has no frequency."""
    for category in payload["categories"]:
        if category.get("frequency") not in ("r", "c", "f"):
            raise DataError(
                f"{source}: category {category['id']} ({category['name']}) has frequency "
                f"{category.get('frequency')!r}: LVIS says r, c or f"
            )
    rare = {c["id"] for c in payload["categories"] if c["frequency"] == "r"}
    return {**payload, "annotations": [a for a in payload["annotations"] if a["category_id"] not in rare]}


def category_statistics(payload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every category with the images and annotations it has in this file, in id order, without its definition."""
    instances: Counter[int] = Counter()
    images: defaultdict[int, set[int]] = defaultdict(set)
    for annotation in payload["annotations"]:
        instances[annotation["category_id"]] += 1
        images[annotation["category_id"]].add(annotation["image_id"])
    return [
        {
            **{key: value for key, value in category.items() if key != "def"},
            "image_count": len(images[category["id"]]),
            "instance_count": instances[category["id"]],
        }
        for category in sorted(payload["categories"], key=lambda c: int(c["id"]))
    ]
