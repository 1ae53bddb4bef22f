"""What can be wrong with a list of COCO results: every fault named by its position and the id at fault."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ovbridge.data.annotation_check import read_json
from ovbridge.errors import DataError


def load_results(path: Path) -> list[dict[str, Any]]:
    """A COCO results file; raises DataError if it is missing, not JSON or not a list."""
    results = read_json(path)
    if not isinstance(results, list):
        raise DataError(f"{path} is not a COCO results file: it must hold a list of detections")
    return results


def check_results(results: Sequence[Any], ground_truth: dict[str, Any], source: str, *, iou_type: str) -> None:
    """Raise DataError, prefixed with `source`, for the first fault of `results` against a checked ground truth."""
    for fault in result_faults(results, ground_truth, iou_type=iou_type):
        raise DataError(f"{source}: {fault}")


def result_faults(results: Sequence[Any], ground_truth: dict[str, Any], *, iou_type: str) -> Iterator[str]:
    """Every reason why the results cannot be scored."""
    images = {i["id"] for i in ground_truth["images"]}
    categories = {c["id"] for c in ground_truth["categories"]}
    for position, result in enumerate(results):
        fault = _fault(result, images, categories, iou_type)
        if fault:
            yield f"detection number {position} {fault}"


def _fault(result: Any, images: set[int], categories: set[int], iou_type: str) -> str | None:
    if not isinstance(result, dict):
        return f"is a {type(result).__name__}, not an object"
    shape_key = "segmentation" if iou_type == "segm" else "bbox"
    missing = [key for key in ("image_id", "category_id", "score", shape_key) if key not in result]
    if missing:
        return f"has no {missing[0]!r}"
    if result["image_id"] not in images:
        return f"is of image {result['image_id']!r}, which the annotation file does not have"
    if result["category_id"] not in categories:
        return f"has category {result['category_id']!r}, which the annotation file does not have"
    if not _finite(result["score"]):
        return f"(image {result['image_id']}) has score {result['score']!r}: a finite number is needed"
    if "bbox" in result:
        bbox = result["bbox"]
        if not isinstance(bbox, list | tuple) or len(bbox) != 4 or not all(map(_finite, bbox)):
            return (
                f"(image {result['image_id']}) has bbox {bbox!r}: four finite numbers [x, y, width, height] are needed"
            )
        if bbox[2] < 0 or bbox[3] < 0:
            return f"(image {result['image_id']}) has bbox {bbox!r}: negative width or height (is it xyxy?)"
    return None


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
