"""OpenImages Challenge 2019 as one COCO-like file, its class hierarchy expanded as the challenge evaluates.

A box of a class is also a box of every class above it. An image said to hold a class also holds those above; an image
said not to hold a class does not hold those below either. Only classes that were looked for in an image count there.
"""

from __future__ import annotations

import csv
import math
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from ovbridge.console import track
from ovbridge.data.annotation_check import read_json
from ovbridge.data.image_reading import image_hw
from ovbridge.data.known_counts import against_known
from ovbridge.data.ovd_files import write_once
from ovbridge.errors import DataError

Split = Literal["validation", "train"]

CLASSES_FILE = "challenge-2019-classes-description-500.csv"
HIERARCHY_FILE = "challenge-2019-label500-hierarchy.json"
BOX_COLUMNS = ("ImageID", "LabelName", "XMin", "XMax", "YMin", "YMax", "IsGroupOf")
SIZE_COLUMNS = ("ImageID", "Width", "Height")
LABEL_COLUMNS = ("ImageID", "LabelName", "Confidence")
KNOWN_CLASSES = 500
_FLAGS = {"1": 1, "1.0": 1, "true": 1, "0": 0, "0.0": 0, "false": 0, "-1": 0, "-1.0": 0}
"""IsGroupOf as OpenImages writes it (-1: unknown) and as spreadsheets do."""
LITERATURE_IMAGES = {"validation": 41_620}
"""What the literature says of the number of images; shown beside ours, but no reason to refuse."""


def write_openimages(
    annotations: Path,
    out: Path,
    *,
    images: Path | None = None,
    image_sizes: Path | None = None,
    split: Split = "validation",
    allow_count_mismatch: bool = False,
) -> dict[str, Any]:
    """Join the challenge's four files, expand the hierarchy, write oid_challenge_2019_SPLIT_expanded.json.

    Boxes become pixels, so the sizes of the images are needed. Boxes around a group carry `is_group_of` (and
    `iscrowd`); images carry `pos_category_ids` and `neg_category_ids`.

    Args:
        annotations: Folder with the classes, hierarchy, boxes and image labels under their public names.
        out: Folder for the result.
        images: Folder with ID.jpg (or SPLIT/ID.jpg), whose headers give the sizes.
        image_sizes: Instead: CSV with the columns ImageID, Width, Height.
        split: Which files to read.
        allow_count_mismatch: Go on although there are not 500 classes.

    Returns:
        {"images", "literature_images", "classes", "boxes", "expanded_boxes", "group_boxes", "positive_labels",
        "negative_labels", "known_counts", "files"}.

    Raises:
        DataError: A file is missing or broken, a label is unknown, or an image has no size.
    """
    if (images is None) == (image_sizes is None):
        raise DataError("sizes of the images are needed: give either their folder (--images) or --image-sizes FILE")
    names = _classes(annotations / CLASSES_FILE)
    verdict = against_known(
        {"classes": len(names)},
        {"classes": KNOWN_CLASSES},
        annotations / CLASSES_FILE,
        size_key="classes",
        allow_mismatch=allow_count_mismatch,
    )
    ids = {label: k + 1 for k, label in enumerate(names)}
    above = ancestors(read_json(annotations / HIERARCHY_FILE), ids)
    below = _reversed(above)
    boxes = list(_rows(annotations / f"challenge-2019-{split}-detection-bbox.csv", BOX_COLUMNS, ids))
    positive, negative = _image_labels(
        annotations / f"challenge-2019-{split}-detection-human-imagelabels.csv", ids, above, below
    )
    keys = sorted({row["ImageID"] for row in boxes} | positive.keys() | negative.keys())
    sizes = _sizes_in(image_sizes) if image_sizes is not None else _sizes_of(keys, images, split)
    number = {key: k + 1 for k, key in enumerate(keys)}
    records: list[dict[str, Any]] = []
    for row in boxes:
        width, height = _size(sizes, row["ImageID"])
        record = _box(row, width, height)
        own = ids[row["LabelName"]]
        for category_id in sorted({own} | above[own]):
            positive[row["ImageID"]].add(category_id)
            owner = {"image_id": number[row["ImageID"]], "category_id": category_id}
            records.append({"id": len(records) + 1, **owner, **record})
    image_records: list[dict[str, Any]] = [
        {
            "id": number[key],
            "file_name": f"{key}.jpg",
            "width": _size(sizes, key)[0],
            "height": _size(sizes, key)[1],
            "pos_category_ids": sorted(positive[key]),
            "neg_category_ids": sorted(negative[key] - positive[key]),
        }
        for key in keys
    ]
    categories = [{"id": ids[label], "name": name, "freebase_id": label} for label, name in names.items()]
    target = out / f"oid_challenge_2019_{split}_expanded.json"
    info = {"description": f"OpenImages Challenge 2019 {split}, hierarchy expanded"}
    write_once(target, {"info": info, "images": image_records, "annotations": records, "categories": categories})
    return {
        "images": len(keys),
        "literature_images": LITERATURE_IMAGES.get(split),
        "classes": len(names),
        "boxes": len(boxes),
        "expanded_boxes": len(records),
        "group_boxes": sum(r["is_group_of"] for r in records),
        "positive_labels": sum(len(i["pos_category_ids"]) for i in image_records),
        "negative_labels": sum(len(i["neg_category_ids"]) for i in image_records),
        "known_counts": verdict,
        "files": [str(target)],
    }


def ancestors(tree: Mapping[str, Any], ids: Mapping[str, int]) -> dict[int, set[int]]:
    """Category id → ids of all classes above it; a class may stand at several places of the tree.

    `tree` nests {"LabelName", "Subcategory": [...]}; labels that `ids` lacks (the root) are passed over. Parts of
    objects ("Part") are no kinds of them and not followed.
    """
    above: dict[int, set[int]] = {category_id: set() for category_id in ids.values()}
    waiting: list[tuple[Mapping[str, Any], frozenset[int]]] = [(tree, frozenset())]
    while waiting:
        node, over = waiting.pop()
        children = node.get("Subcategory", []) if isinstance(node, dict) else None
        if not isinstance(children, list) or not isinstance(node.get("LabelName"), str):
            raise DataError(
                "the class hierarchy is not made of objects with LabelName and lists in Subcategory: fetch it again"
            )
        own = ids.get(node["LabelName"])
        if own is not None:
            above[own] |= over - {own}
        under = over if own is None else over | {own}
        waiting += [(child, under) for child in children]
    return above


def _reversed(above: Mapping[int, set[int]]) -> dict[int, set[int]]:
    below: dict[int, set[int]] = {category_id: set() for category_id in above}
    for category_id, over in above.items():
        for ancestor in over:
            below[ancestor].add(category_id)
    return below


def _classes(path: Path) -> dict[str, str]:
    """Freebase label → name, in file order (the order of the published text embeddings)."""
    names: dict[str, str] = {}
    for row in _lines(path, 2):
        if row[0] in names:
            raise DataError(f"{path} lists the label {row[0]} twice: fetch it again")
        names[row[0]] = row[1]
    if len(set(names.values())) != len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise DataError(f"{path} names two classes {twice!r}: rename one")
    return names


def _lines(path: Path, width: int) -> list[list[str]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            rows = [row for row in csv.reader(file) if row]
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: fetch it from the OpenImages Challenge 2019 page") from None
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} cannot be read ({error}): fetch it again") from None
    for number, row in enumerate(rows, 1):
        if len(row) < width:
            raise DataError(f"{path}: line {number} has {len(row)} columns, {width} are needed: fetch it again")
    return rows


def _table(path: Path, columns: Sequence[str]) -> Iterator[dict[str, str]]:
    """Rows of a CSV by column name."""
    header, *rows = _lines(path, len(columns)) or [[]]
    position = {name: header.index(name) for name in columns if name in header}
    if len(position) < len(columns):
        absent = next(name for name in columns if name not in position)
        raise DataError(f"{path} has no column {absent}: its first line must name {', '.join(columns)}")
    for number, row in enumerate(rows, 2):
        if len(row) <= max(position.values()):
            raise DataError(f"{path}: line {number} has {len(row)} columns, the first line {len(header)}")
        yield {name: row[k] for name, k in position.items()}


def _rows(path: Path, columns: Sequence[str], ids: Mapping[str, int]) -> Iterator[dict[str, str]]:
    """Rows of a CSV by column name, each label one of the challenge."""
    for number, found in enumerate(_table(path, columns), 2):
        if found["LabelName"] not in ids:
            raise DataError(f"{path}: line {number} has label {found['LabelName']!r}, which is no challenge class")
        yield found


def _image_labels(
    path: Path, ids: Mapping[str, int], above: Mapping[int, set[int]], below: Mapping[int, set[int]]
) -> tuple[defaultdict[str, set[int]], defaultdict[str, set[int]]]:
    """(image → classes it holds, image → classes it does not hold), both expanded."""
    positive: defaultdict[str, set[int]] = defaultdict(set)
    negative: defaultdict[str, set[int]] = defaultdict(set)
    for row in _rows(path, LABEL_COLUMNS, ids):
        own = ids[row["LabelName"]]
        if _number(row["Confidence"], path, row["ImageID"]) > 0:
            positive[row["ImageID"]] |= {own} | above[own]
        else:
            negative[row["ImageID"]] |= {own} | below[own]
    return positive, negative


def _box(row: Mapping[str, str], width: int, height: int) -> dict[str, Any]:
    x1, x2, y1, y2 = (_number(row[key], "the boxes", row["ImageID"]) for key in ("XMin", "XMax", "YMin", "YMax"))
    if not (0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1):
        raise DataError(f"image {row['ImageID']} has box {x1, x2, y1, y2}: fractions of the sides in order are needed")
    bbox = [x1 * width, y1 * height, (x2 - x1) * width, (y2 - y1) * height]
    group = _FLAGS.get(row["IsGroupOf"].strip().lower())
    if group is None:
        raise DataError(f"the boxes: image {row['ImageID']} has IsGroupOf {row['IsGroupOf']!r}: 0, 1 or -1 is needed")
    return {"bbox": bbox, "area": bbox[2] * bbox[3], "iscrowd": group, "is_group_of": group}


def _number(text: str, source: object, image: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise DataError(f"{source}: image {image} has {text!r} where a number is needed")
    return number


def _sizes_in(path: Path) -> dict[str, tuple[int, int]]:
    """Image → (width, height) by a CSV."""
    return {
        row["ImageID"]: (_pixels(row["Width"], path, row["ImageID"]), _pixels(row["Height"], path, row["ImageID"]))
        for row in _table(path, SIZE_COLUMNS)
    }


def _pixels(text: str, source: object, image: str) -> int:
    pixels = int(_number(text, source, image))
    if pixels < 1:
        raise DataError(f"{source}: image {image} has {text!r} where a positive number of pixels is needed")
    return pixels


def _sizes_of(keys: Sequence[str], images: Path | None, split: str) -> dict[str, tuple[int, int]]:
    assert images is not None
    folder = images / split if (images / split).is_dir() else images
    found = {}
    for key in track(keys, "read sizes", len(keys)):
        height, width = image_hw(folder / f"{key}.jpg")
        found[key] = (width, height)
    return found


def _size(sizes: Mapping[str, tuple[int, int]], key: str) -> tuple[int, int]:
    if key not in sizes:
        raise DataError(f"image {key} has no size: add it to --image-sizes")
    return sizes[key]
