"""What can be wrong with a COCO-format annotation file: every fault named by the id it sits on.

A fault refuses the file, a note is something that real files contain and that reading deals with.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ovbridge.data.label_check import label_faults
from ovbridge.data.masks import segmentation_fault
from ovbridge.data.numbers import are_ids, is_finite, is_id
from ovbridge.errors import DataError

FEDERATED_KEYS = ("neg_category_ids", "not_exhaustive_category_ids")


_LONGEST_SIDE = 2**31 - 1


def read_json(path: Path, wanted: str = "a COCO-format annotation file") -> Any:
    """The parsed file; raises DataError, asking for what is `wanted`, if it is missing or not JSON."""
    try:
        return json.loads(Path(path).read_bytes())
    except FileNotFoundError:
        raise DataError(f"{path} does not exist: give the path of {wanted}") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error}): give {wanted}") from None
    except RecursionError:
        raise DataError(f"{path} is nested too deeply: give {wanted}") from None


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
    marked = federated_image(payload)
    if federated and marked is None:
        raise DataError(f"{source}: no image carries neg_category_ids, so it is not an LVIS file: use a COCO protocol")
    if federated is False and marked is not None:
        raise DataError(
            f"{source}: image {marked} carries neg_category_ids, so this is a federated LVIS file, "
            "not COCO: use an LVIS protocol or recipe"
        )
    for fault in federated_faults(payload) if boxes else ():
        raise DataError(f"{source}: {fault}")


def federated_image(payload: dict[str, Any]) -> Any | None:
    """The id of the first image that marks the file as LVIS (federated), or None."""
    return next((i["id"] for i in payload["images"] if any(key in i for key in FEDERATED_KEYS)), None)


def federated_faults(payload: dict[str, Any]) -> Iterator[str]:
    """What is wrong with the classes that each image was searched for, where the file tells them."""
    for key in (*FEDERATED_KEYS, "pos_category_ids"):
        having = [key in image for image in payload["images"]]
        for image, has_key in zip(payload["images"], having, strict=True):
            if has_key and not are_ids(image[key]):
                yield f"image {image['id']} has {key} that is no list of category ids"
            elif not has_key and key in FEDERATED_KEYS and any(having):
                yield f"image {image['id']} has no {key}, other images have: give it a list, perhaps an empty one"


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
    wanted = [k for k in ("images", "categories", "annotations") if boxes or k == "images" or k in payload]
    missing = [key for key in wanted if not isinstance(payload.get(key), list)]
    if missing:
        yield f"no list {' and '.join(map(repr, missing))}: this is not a COCO-format annotation file"
        return
    if boxes and not payload["categories"]:
        yield "'categories' is empty: a captions file holds no boxes, give the instances file"
        return
    yield from _category_faults(payload.get("categories", []))
    yield from _image_faults(payload["images"])
    yield from _box_faults(payload) if boxes else label_faults(payload)


def notes(payload: dict[str, Any]) -> Iterator[str]:
    """What a valid file contains that reading leaves out or mends."""
    flat = [a["id"] for a in payload["annotations"] if is_flat(a["bbox"])]
    if flat:
        yield f"{len(flat)} boxes of zero area are left out (annotation ids {_shortened(flat)})"
    sizes = {i["id"]: (i["width"], i["height"]) for i in payload["images"]}
    outside = [a["id"] for a in payload["annotations"] if _reaches_out(a["bbox"], *sizes[a["image_id"]])]
    if outside:
        yield f"{len(outside)} boxes reach outside their image and are clipped (annotation ids {_shortened(outside)})"
    broken = [a["id"] for a in payload["annotations"] if _has_broken_mask(a, *sizes[a["image_id"]])]
    if broken:
        yield f"{len(broken)} annotations have no usable mask, only a box (annotation ids {_shortened(broken)})"
    crowds = sum(bool(a.get("iscrowd")) for a in payload["annotations"])
    if crowds:
        yield f"{crowds} crowd regions take no part in training"
    with_boxes = {a["image_id"] for a in payload["annotations"]}
    empty = len(payload["images"]) - len(with_boxes)
    if empty:
        yield f"{empty} images have no annotation"
    yield from _category_notes(payload)


def _category_notes(payload: dict[str, Any]) -> Iterator[str]:
    """Names that look alike, and ids without a category."""
    first_with: dict[str, str] = {}
    for category in payload["categories"]:
        other = first_with.setdefault(" ".join(category["name"].lower().split()), category["name"])
        if other != category["name"]:
            yield f"categories {other!r} and {category['name']!r} differ in case or spaces alone: they are two classes"
    known = {c["id"] for c in payload["categories"]}
    unknown = {c for i in payload["images"] for key in FEDERATED_KEYS for c in i.get(key, ()) if c not in known}
    if unknown:
        yield f"images name {len(unknown)} category ids that have no category (ids {_shortened(sorted(unknown))})"


def is_flat(bbox_xywh: list[float]) -> bool:
    """Whether a box has no area; real COCO train2017 has such boxes."""
    return bbox_xywh[2] == 0 or bbox_xywh[3] == 0


def _reaches_out(bbox: list[float], width: float, height: float) -> bool:
    # COCO rounds to hundredths, so a box may end a rounding step beyond the edge.
    slack = 0.02
    x, y, w, h = bbox
    return x < -slack or y < -slack or x + w > width + slack or y + h > height + slack


def _has_broken_mask(annotation: dict[str, Any], width: int, height: int) -> bool:
    segmentation = annotation.get("segmentation")
    return bool(segmentation) and segmentation_fault(segmentation, height, width) is not None


def _shortened(ids: list[Any], show: int = 5) -> str:
    return ", ".join(map(str, ids[:show])) + (", …" if len(ids) > show else "")


def _record_faults(records: list[Any], kind: str) -> Iterator[str]:
    """Records that are no objects, have no id, or share one."""
    seen: set[int] = set()
    for position, record in enumerate(records):
        if not isinstance(record, dict) or not is_id(record.get("id")):
            yield f"{kind} number {position} has no 'id' that is a whole number from 0"
        elif record["id"] in seen:
            yield f"{kind} id {record['id']} appears twice"
        else:
            seen.add(record["id"])


def _with_id(records: list[Any]) -> Iterator[dict[str, Any]]:
    return (r for r in records if isinstance(r, dict) and is_id(r.get("id")))


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
            if not _is_length(image.get(key)):
                yield f"image {image['id']} has {key} {image.get(key)!r}: a positive whole number of pixels is needed"


def _is_length(value: Any) -> bool:
    """Whether a value is a number of pixels; 640.0 is one."""
    return is_finite(value) and 0 < value <= _LONGEST_SIDE and value == int(value)


def _box_faults(payload: dict[str, Any]) -> Iterator[str]:
    yield from _record_faults(payload["annotations"], "annotation")
    sizes = {i["id"]: (i.get("width"), i.get("height")) for i in _with_id(payload["images"])}
    categories = {c["id"] for c in _with_id(payload["categories"])}
    for annotation in _with_id(payload["annotations"]):
        for fault in _annotation_faults(annotation, sizes, categories):
            yield f"annotation {annotation['id']} {fault}"


def _annotation_faults(
    annotation: dict[str, Any], sizes: dict[int, tuple[Any, Any]], categories: set[int]
) -> Iterator[str]:
    image_id, category_id = annotation.get("image_id"), annotation.get("category_id")
    size = sizes.get(image_id) if is_id(image_id) else None
    if size is None:
        yield f"belongs to image {image_id!r}, which is not in 'images'"
    if not is_id(category_id) or category_id not in categories:
        yield f"has category {category_id!r}, which is not in 'categories'"
    fault = _bbox_fault(annotation.get("bbox"), image_id, size or (None, None))
    if fault:
        yield fault
    if "area" in annotation and not is_finite(annotation["area"]):
        yield f"has area {annotation['area']!r}: a number is needed"
    for key in ("iscrowd", "is_group_of"):
        if annotation.get(key) not in (0, 1, None):
            yield f"has {key} {annotation[key]!r}: 0 or 1 is needed"


def _is_real(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _bbox_fault(bbox: Any, image_id: Any, size: tuple[Any, Any]) -> str | None:
    if not isinstance(bbox, list) or len(bbox) != 4 or not all(map(_is_real, bbox)):
        return f"has bbox {bbox!r}: four numbers [x, y, width, height] are needed"
    if not all(map(is_finite, bbox)):
        return f"has bbox {bbox}: NaN and infinity are not pixels"
    x, y, w, h = bbox
    if w < 0 or h < 0:
        return f"has bbox {bbox}: width and height must not be negative (is it xyxy?)"
    width, height = size
    outside = is_finite(width) and is_finite(height) and (x >= width or y >= height or x + w <= 0 or y + h <= 0)
    if outside and not is_flat(bbox):
        return f"has bbox {bbox}, wholly outside its image {image_id} of {width}x{height}"
    return None
