"""What can be wrong with a list of COCO results: every fault named by its position and the id at fault."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.data.annotation_check import read_json
from ovbridge.data.masks import segmentation_fault
from ovbridge.data.numbers import is_finite
from ovbridge.errors import DataError


def load_results(path: Path) -> list[dict[str, Any]] | np.ndarray:
    """A COCO results file, or a .npy of [N, 7] numbers; raises DataError if it is missing or neither.

    Columns of a .npy: image id, x, y, width, height, score, category id (as pycocotools takes them).
    """
    if path.suffix == ".npy":
        try:
            array = np.load(path, allow_pickle=False)
        except FileNotFoundError:
            raise DataError(f"{path} does not exist: give the path of a results file") from None
        except (OSError, ValueError) as error:
            raise DataError(f"{path} is no .npy array of results ({error}): write [N, 7] numbers") from None
        if array.ndim != 2 or array.shape[1] != 7 or array.dtype.kind not in "fiu":
            raise DataError(f"{path} is {array.shape} {array.dtype}: results are [N, 7] numbers")
        return np.asarray(array, dtype=np.float64)
    results = read_json(path, "a COCO results file")
    if not isinstance(results, list):
        raise DataError(f"{path} is not a COCO results file: it must hold a list of detections")
    return results


def check_results(
    results: Sequence[Any] | np.ndarray, ground_truth: dict[str, Any], source: str, *, iou_type: str
) -> None:
    """Raise DataError, prefixed with `source`, for the first fault of `results` against a checked ground truth."""
    for fault in result_faults(results, ground_truth, iou_type=iou_type):
        raise DataError(f"{source}: {fault}")


def result_faults(results: Sequence[Any] | np.ndarray, ground_truth: dict[str, Any], *, iou_type: str) -> Iterator[str]:
    """Every reason why the results cannot be scored."""
    sizes = {i["id"]: (i["height"], i["width"]) for i in ground_truth["images"]}
    categories = {c["id"] for c in ground_truth["categories"]}
    if isinstance(results, np.ndarray):
        yield from _number_faults(results, set(sizes), categories, iou_type)
        return
    for position, result in enumerate(results):
        fault = _fault(result, sizes, categories, iou_type)
        if fault:
            yield f"detection number {position} {fault}"


def _fault(result: Any, sizes: dict[int, tuple[int, int]], categories: set[int], iou_type: str) -> str | None:
    if not isinstance(result, dict):
        return f"is a {type(result).__name__}, not an object"
    shape_key = "segmentation" if iou_type == "segm" else "bbox"
    missing = [key for key in ("image_id", "category_id", "score", shape_key) if key not in result]
    if missing:
        return f"has no {missing[0]!r}"
    for key in ("image_id", "category_id"):
        if not isinstance(result[key], int | str) or isinstance(result[key], bool):
            return f"has {key} {result[key]!r}: an id is needed"
    if result["image_id"] not in sizes:
        return f"is of image {result['image_id']!r}, which the annotation file does not have"
    if result["category_id"] not in categories:
        return f"has category {result['category_id']!r}, which the annotation file does not have"
    if not is_finite(result["score"]):
        return f"(image {result['image_id']}) has score {result['score']!r}: a finite number is needed"
    if "bbox" in result:
        bbox = result["bbox"]
        if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(is_finite, bbox)):
            return (
                f"(image {result['image_id']}) has bbox {bbox!r}: four finite numbers [x, y, width, height] are needed"
            )
        if bbox[2] < 0 or bbox[3] < 0:
            return f"(image {result['image_id']}) has bbox {bbox!r}: negative width or height (is it xyxy?)"
    if iou_type == "segm":
        fault = segmentation_fault(result["segmentation"], *sizes[result["image_id"]])
        if fault:
            return f"(image {result['image_id']}) has no usable segmentation: {fault}"
    return None


def _number_faults(rows_N7: np.ndarray, images: set[int], categories: set[int], iou_type: str) -> Iterator[str]:
    if iou_type != "bbox":
        yield "results as numbers hold boxes alone: use iou type bbox, or give COCO records with masks"
        return
    bad = {
        "is of an image that the annotation file does not have": ~np.isin(rows_N7[:, 0], list(images)),
        "has a category that the annotation file does not have": ~np.isin(rows_N7[:, 6], list(categories)),
        "has a number that is not finite": ~np.isfinite(rows_N7).all(axis=1),
        "has negative width or height (is it xyxy?)": (rows_N7[:, 3:5] < 0).any(axis=1),
    }
    for why, rows in bad.items():
        for position in np.flatnonzero(rows):
            yield f"detection number {position} (image {rows_N7[position, 0]:g}) {why}: {rows_N7[position].tolist()}"
