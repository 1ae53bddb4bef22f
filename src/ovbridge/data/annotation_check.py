"""What can be wrong with a COCO-format annotation file: every fault named by the id it sits on.

A fault refuses the file, a note is something that real files contain and that reading deals with.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovbridge.errors import DataError

_FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


def read_json(path: Path) -> Any:
    """The parsed file; raises DataError if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give the path of an annotation file") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): give a COCO-format annotation file") from None


def load_annotations(path: Path, *, boxes: bool = True, federated: bool | None = False) -> dict[str, Any]:
    """The file as a dict, after every check of `faults`; raises DataError with the first fault.

    Args:
        path: A COCO-format JSON file.
        boxes: Whether the file must hold box annotations (a captions file or tag file need not).
        federated: True where an LVIS file is expected, False where it must not be one, None for either.
    """
    payload = read_json(path)
    check_annotations(payload, str(path), boxes=boxes, federated=federated)
    assert isinstance(payload, dict)
    return payload


def check_annotations(payload: Any, source: str, *, boxes: bool = True, federated: bool | None = False) -> None:
    """Raise DataError, prefixed with `source`, for the first fault of `payload`."""
    for fault in faults(payload, boxes=boxes):
        raise DataError(f"{source}: {fault}")
    if federated is None:
        return
    marked = federated_image(payload)
    if federated and marked is None:
        raise DataError(f"{source}: no image carries neg_category_ids, so it is not an LVIS file: use a COCO protocol")
    if not federated and marked is not None:
        raise DataError(
            f"{source}: image {marked} carries neg_category_ids, so this is a federated LVIS file, "
            "not COCO: use an LVIS protocol or recipe"
        )


def federated_image(payload: dict[str, Any]) -> Any | None:
    """The id of the first image that marks the file as LVIS (federated), or None."""
    return next((i["id"] for i in payload["images"] if any(key in i for key in _FEDERATED_KEYS)), None)


def image_file_name(record: dict[str, Any]) -> str | None:
    """`file_name`, or for LVIS v1 (which has none) the last two parts of `coco_url`."""
    if isinstance(record.get("file_name"), str):
        return str(record["file_name"])
    url = record.get("coco_url")
    return "/".join(url.rsplit("/", 2)[-2:]) if isinstance(url, str) else None


def faults(payload: Any, *, boxes: bool = True) -> Iterator[str]:
    """Every reason why the file cannot be used, each naming the offending id."""
    if not isinstance(payload, dict):
        yield f"the top level is a {type(payload).__name__}, a COCO file is an object with images and annotations"
        return
    wanted = ("images", "categories", "annotations") if boxes else ("images",)
    missing = [key for key in wanted if not isinstance(payload.get(key), list)]
    if missing:
        yield f"no list {' and '.join(map(repr, missing))}: this is not a COCO-format annotation file"
        return
    if boxes and not payload["categories"]:
        yield "'categories' is empty: a captions file holds no boxes, give the instances file"
        return
    yield from _category_faults(payload.get("categories", []))
    yield from _image_faults(payload["images"])
    if boxes:
        yield from _box_faults(payload)


def notes(payload: dict[str, Any]) -> Iterator[str]:
    """What a valid file contains that reading leaves out or mends."""
    flat = [a["id"] for a in payload["annotations"] if is_flat(a["bbox"])]
    if flat:
        yield f"{len(flat)} boxes of zero area are left out (annotation ids {_shortened(flat)})"
    sizes = {i["id"]: (i["width"], i["height"]) for i in payload["images"]}
    outside = [a["id"] for a in payload["annotations"] if _reaches_out(a["bbox"], *sizes[a["image_id"]])]
    if outside:
        yield f"{len(outside)} boxes reach outside their image and are clipped (annotation ids {_shortened(outside)})"
    crowds = sum(bool(a.get("iscrowd")) for a in payload["annotations"])
    if crowds:
        yield f"{crowds} crowd regions take no part in training"
    with_boxes = {a["image_id"] for a in payload["annotations"]}
    empty = len(payload["images"]) - len(with_boxes)
    if empty:
        yield f"{empty} images have no annotation"


def is_flat(bbox_xywh: list[float]) -> bool:
    """Whether a box has no area; real COCO train2017 has such boxes."""
    return bbox_xywh[2] == 0 or bbox_xywh[3] == 0


def _reaches_out(bbox: list[float], width: float, height: float) -> bool:
    # COCO rounds to hundredths, so a box may end a rounding step beyond the edge.
    slack = 0.02
    x, y, w, h = bbox
    return x < -slack or y < -slack or x + w > width + slack or y + h > height + slack


def _shortened(ids: list[Any], show: int = 5) -> str:
    return ", ".join(map(str, ids[:show])) + (", …" if len(ids) > show else "")


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return _is_real(value) and math.isfinite(value)


def _record_faults(records: list[Any], kind: str) -> Iterator[str]:
    """Records that are no objects, have no integer id, or share one."""
    seen: set[int] = set()
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not _is_id(record.get("id")):
            yield f"{kind} number {position} has no integer 'id'"
        elif record["id"] in seen:
            yield f"{kind} id {record['id']} appears twice"
        else:
            seen.add(record["id"])


def _with_id(records: list[Any]) -> Iterator[dict[str, Any]]:
    return (r for r in records if isinstance(r, dict) and _is_id(r.get("id")))


def _category_faults(categories: list[Any]) -> Iterator[str]:
    yield from _record_faults(categories, "category")
    first_with: dict[str, int] = {}
    for category in _with_id(categories):
        name = category.get("name")
        if not isinstance(name, str) or not name.strip():
            yield f"category {category['id']} has no 'name'"
        elif first_with.setdefault(name, category["id"]) != category["id"]:
            yield f"categories {first_with[name]} and {category['id']} are both named {name!r}"


def _image_faults(images: list[Any]) -> Iterator[str]:
    yield from _record_faults(images, "image")
    for image in _with_id(images):
        if image_file_name(image) is None:
            yield f"image {image['id']} has no 'file_name'"
        for key in ("width", "height"):
            if not _number(image.get(key)) or image[key] <= 0:
                yield f"image {image['id']} has {key} {image.get(key)!r}: a positive number of pixels is needed"


def _box_faults(payload: dict[str, Any]) -> Iterator[str]:
    yield from _record_faults(payload["annotations"], "annotation")
    sizes = {i["id"]: (i.get("width"), i.get("height")) for i in _with_id(payload["images"])}
    categories = {c["id"] for c in _with_id(payload["categories"])}
    for annotation in _with_id(payload["annotations"]):
        fault = _annotation_fault(annotation, sizes, categories)
        if fault:
            yield f"annotation {annotation['id']} {fault}"


def _annotation_fault(
    annotation: dict[str, Any], sizes: dict[int, tuple[Any, Any]], categories: set[int]
) -> str | None:
    image_id, category_id, bbox = (annotation.get(key) for key in ("image_id", "category_id", "bbox"))
    if not _is_id(image_id) or image_id not in sizes:
        return f"belongs to image {image_id!r}, which is not in 'images'"
    if not _is_id(category_id) or category_id not in categories:
        return f"has category {category_id!r}, which is not in 'categories'"
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_real, bbox)):
        return f"has bbox {bbox!r}: four numbers [x, y, width, height] are needed"
    if not all(_number(v) for v in bbox):
        return f"has bbox {bbox}: NaN and infinity are not pixels"
    x, y, w, h = bbox
    if w < 0 or h < 0:
        return f"has bbox {bbox}: width and height must not be negative (is it xyxy?)"
    width, height = sizes[image_id]
    outside = _number(width) and _number(height) and (x >= width or y >= height or x + w <= 0 or y + h <= 0)
    if outside and not is_flat(bbox):
        return f"has bbox {bbox}, wholly outside its image {image_id} of {width}x{height}"
    if "area" in annotation and not _number(annotation["area"]):
        return f"has area {annotation['area']!r}: a number is needed"
    return None
