"""Detections as the files that other tools read: JSON, COCO results, YOLO labels, Label Studio pre-annotations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ovbridge.structures import Detections


@dataclass(frozen=True, kw_only=True)
class ImageResult:
    """What was found in one picture."""

    image: str
    """Its path, with "#frame" for a frame of a video."""
    stem: str
    """File name without ending, unique in the run."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    detections: Detections
    drawn: str | None = None
    """The picture with drawn boxes, if there is one."""


def json_record(result: ImageResult) -> dict[str, Any]:
    """One picture of `--json`: boxes xyxy in pixels."""
    found = result.detections
    return {
        "image": result.image,
        "width": result.width,
        "height": result.height,
        "drawn": result.drawn,
        "detections": [
            {"name": name, "score": round(score, 4), "box_xyxy": [round(v, 2) for v in box]}
            for name, score, box in zip(
                found.class_names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
            )
        ],
    }


def run_record(results: Sequence[ImageResult], skipped: Sequence[tuple[str, str]], checkpoint: str) -> dict[str, Any]:
    """A whole run as `--json` prints it; `skipped` has each image that could not be read, and why."""
    return {
        "checkpoint": checkpoint,
        "images": [json_record(result) for result in results],
        "skipped": [{"image": image, "reason": reason} for image, reason in skipped],
    }


def image_ids(results: Sequence[ImageResult]) -> list[int]:
    """COCO image ids: the numbers that the files are called by if all are (000000000139.jpg), else 1, 2, ..."""
    stems = [result.stem for result in results]
    if all(stem.isascii() and stem.isdigit() for stem in stems) and len({int(s) for s in stems}) == len(stems):
        return [int(stem) for stem in stems]
    return list(range(1, len(results) + 1))


def coco_results(results: Sequence[ImageResult]) -> list[dict[str, Any]]:
    """COCO result records of all pictures; category ids count the names from 1."""
    return [
        record
        for image_id, result in zip(image_ids(results), results, strict=True)
        for record in result.detections.to_coco(image_id)
    ]


def coco_images(results: Sequence[ImageResult], names: Sequence[str]) -> dict[str, Any]:
    """What the ids in `coco_results` mean, in the form of a COCO annotation file."""
    return {
        "images": [
            {"id": image_id, "file_name": result.image, "width": result.width, "height": result.height}
            for image_id, result in zip(image_ids(results), results, strict=True)
        ],
        "categories": [{"id": number, "name": name} for number, name in enumerate(names, start=1)],
    }


def label_studio_task(result: ImageResult, model_version: str) -> dict[str, Any]:
    """One task with a pre-annotation; the labelling interface needs an Image "image" and RectangleLabels "label"."""
    found = result.detections
    regions = []
    for number, (name, score, box) in enumerate(
        zip(found.class_names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True)
    ):
        x1, y1, x2, y2 = box
        regions.append(
            {
                "id": f"{result.stem}-{number}",
                "from_name": "label",
                "to_name": "image",
                "type": "rectanglelabels",
                "original_width": result.width,
                "original_height": result.height,
                "image_rotation": 0,
                "score": score,
                "value": {
                    "x": 100 * x1 / result.width,
                    "y": 100 * y1 / result.height,
                    "width": 100 * (x2 - x1) / result.width,
                    "height": 100 * (y2 - y1) / result.height,
                    "rotation": 0,
                    "rectanglelabels": [name],
                },
            }
        )
    mean = float(found.scores.mean()) if len(found) else 0.0
    return {
        "data": {"image": result.image},
        "predictions": [{"model_version": model_version, "score": mean, "result": regions}],
    }
