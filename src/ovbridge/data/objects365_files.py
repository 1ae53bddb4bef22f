"""Objects365 v2 for cross-dataset evaluation: the corrected class names, and file names as the archives unpack."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovbridge.data.annotation_check import image_file_name, load_annotations
from ovbridge.data.known_counts import against_known
from ovbridge.data.ovd_files import write_once
from ovbridge.errors import DataError

KNOWN = {"val": {"images": 80_000, "classes": 365}, "train": {"images": 1_742_292, "classes": 365}}


def write_objects365(
    annotations: Path, names_fix: Path, out: Path, *, images: Path | None = None, allow_count_mismatch: bool = False
) -> dict[str, Any]:
    """Correct the class names of zhiyuan_objv2_val.json (or _train.json) and write STEM_names_fixed.json.

    "images/v1/patch8/x.jpg" becomes "patch8/x.jpg", which is where the patch archives put it.

    Args:
        annotations: The public JSON.
        names_fix: Objects365_names_fix.csv of Detic: id, published name, corrected name.
        out: Folder for the result.
        images: Folder with the patch folders; images that are not there are left out with their boxes.
        allow_count_mismatch: Go on although a full file gives other counts than the known ones.

    Returns:
        {"images", "annotations", "classes", "renamed", "absent_images", "known_counts", "files"}.

    Raises:
        DataError: A file is missing or broken, the names do not belong to it, or the counts differ.
    """
    payload = load_annotations(annotations)
    fixed = _read_names(names_fix)
    categories = sorted((_renamed(c, fixed, names_fix) for c in payload["categories"]), key=lambda c: int(c["id"]))
    records = [{**i, "file_name": "/".join(str(image_file_name(i)).split("/")[-2:])} for i in payload["images"]]
    counts = {"images": len(records), "classes": len(categories)}
    known = KNOWN["train" if "train" in annotations.stem else "val"]
    verdict = against_known(counts, known, annotations, size_key="images", allow_mismatch=allow_count_mismatch)
    absent = 0
    boxes = payload["annotations"]
    if images is not None:
        there = [r for r in records if (images / r["file_name"]).is_file()]
        if not there:
            raise DataError(
                f"{images} holds none of the images of {annotations}, for instance {records[0]['file_name']}"
            )
        absent, records = len(records) - len(there), there
        kept = {r["id"] for r in records}
        boxes = [a for a in boxes if a["image_id"] in kept]
    target = out / f"{annotations.stem}_names_fixed.json"
    write_once(target, {**payload, "images": records, "annotations": boxes, "categories": categories})
    published = {c["id"]: c["name"] for c in payload["categories"]}
    return {
        **counts,
        "annotations": len(boxes),
        "renamed": sum(published[c["id"]] != c["name"] for c in categories),
        "absent_images": absent,
        "known_counts": verdict,
        "files": [str(target)],
    }


def _read_names(path: Path) -> dict[int, tuple[str, str]]:
    """Category id → (published name, corrected name)."""
    try:
        with path.open(encoding="utf-8", newline="") as file:
            return {int(row[0]): (row[1].strip(), row[2].strip()) for row in csv.reader(file) if row}
    except (OSError, UnicodeDecodeError, ValueError, IndexError) as error:
        raise DataError(
            f"{path} is no list of id, name, corrected name ({error}): give Objects365_names_fix.csv"
        ) from None


def _renamed(category: Mapping[str, Any], fixed: Mapping[int, tuple[str, str]], source: Path) -> dict[str, Any]:
    if category["id"] not in fixed:
        raise DataError(
            f"{source} has no row for category {category['id']} ({category['name']}): it belongs to another file"
        )
    published, corrected = fixed[category["id"]]
    if category["name"].strip() not in (published, corrected):
        raise DataError(
            f"{source} calls category {category['id']} {published!r}, the annotation file {category['name']!r}: "
            "it belongs to another file"
        )
    return {**category, "name": corrected}
