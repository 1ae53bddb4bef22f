"""Object crops with texts, from any COCO-format annotation file: what a CLIP is trained and measured on.

An annotation may carry `phrase` ("a small red mug") and a category `synonyms`; both are optional, so
plain COCO and grounded data sets serve alike. Boxes are xywh in pixels, as COCO stores them.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovbridge.errors import DataError

PATCH_SIZE = 96
CONTEXT = 1.5
MIN_SIDE = 8.0
BACKGROUND = -1


@dataclass(frozen=True, kw_only=True)
class CropSet:
    """N square patches, each around one object (or around background), with the words for it."""

    patches: np.ndarray
    """[N, 96, 96, 3] uint8 RGB; the object's box is the middle of the patch, with context around."""
    boxes_xyxy: np.ndarray
    """[N, 4] float32, the object's box in pixels of its patch."""
    class_ids: np.ndarray
    """[N] int64 columns of `names`; -1 is background."""
    phrases: tuple[str, ...]
    """[N] the annotation's phrase, or "" where it has none."""
    names: tuple[str, ...]
    synonyms: tuple[tuple[str, ...], ...]
    roles: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.patches)


def load_crops(
    annotations: Path,
    images: Path,
    *,
    background_per_image: float = 0.4,
    seed: int = 0,
    on_image: Callable[[], None] | None = None,
) -> CropSet:
    """Cut one patch around every annotated object, and some around background.

    Raises DataError if the annotation file or an image cannot be read.
    """
    truth = _read_json(annotations)
    categories = sorted(truth["categories"], key=lambda c: int(c["id"]))
    column = {int(c["id"]): i for i, c in enumerate(categories)}
    by_image: dict[int, list[dict[str, Any]]] = {}
    for annotation in truth["annotations"]:
        by_image.setdefault(int(annotation["image_id"]), []).append(annotation)
    rng = np.random.default_rng(seed)
    patches, boxes, class_ids, phrases = [], [], [], []
    for record in truth["images"]:
        found = by_image.get(int(record["id"]), [])
        try:
            with Image.open(images / record["file_name"]) as file:
                image = file.convert("RGB")
        except OSError as error:
            raise DataError(f"cannot read image {images / record['file_name']}: {error}") from None
        for annotation in found:
            box = np.asarray(annotation["bbox"], dtype=np.float32)
            if annotation.get("iscrowd") or min(box[2:]) < MIN_SIDE:
                continue
            patch, inner = _cut(image, box)
            patches.append(patch)
            boxes.append(inner)
            class_ids.append(column[int(annotation["category_id"])])
            phrases.append(str(annotation.get("phrase", "")))
        if rng.random() < background_per_image:
            empty = _background_box(image.size, [a["bbox"] for a in found], rng)
            if empty is not None:
                patch, inner = _cut(image, empty)
                patches.append(patch)
                boxes.append(inner)
                class_ids.append(BACKGROUND)
                phrases.append("")
        if on_image is not None:
            on_image()
    if not patches:
        raise DataError(f"{annotations} has no object of at least {MIN_SIDE:.0f} pixels to train on")
    return CropSet(
        patches=np.stack(patches),
        boxes_xyxy=np.stack(boxes).astype(np.float32),
        class_ids=np.asarray(class_ids, dtype=np.int64),
        phrases=tuple(phrases),
        names=tuple(str(c["name"]) for c in categories),
        synonyms=tuple(tuple(c.get("synonyms", ())) for c in categories),
        roles=tuple(str(c.get("role", "base")) for c in categories),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        truth = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read annotations {path}: {error}") from None
    if not isinstance(truth, dict) or not {"images", "annotations", "categories"} <= truth.keys():
        raise DataError(f"{path} is not a COCO annotation file: it needs images, annotations and categories")
    return truth


def _cut(image: Image.Image, box_xywh: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A square patch with context around a box, and the box in the patch's pixels; outside is black."""
    x, y, w, h = (float(v) for v in box_xywh)
    side = CONTEXT * max(w, h)
    left, top = x + w / 2 - side / 2, y + h / 2 - side / 2
    window = image.crop((round(left), round(top), round(left + side), round(top + side)))
    scale = PATCH_SIZE / window.width
    patch = np.asarray(window.resize((PATCH_SIZE, PATCH_SIZE), Image.Resampling.BILINEAR))
    inner = np.array([x - round(left), y - round(top), x + w - round(left), y + h - round(top)]) * scale
    return patch, inner


def _background_box(
    size: tuple[int, int], boxes_xywh: list[list[float]], rng: np.random.Generator
) -> np.ndarray | None:
    """A random box that covers and is covered by little of any object; None if ten tries find none."""
    width, height = size
    for _ in range(10):
        side = rng.uniform(0.12, 0.4) * min(size)
        x, y = rng.uniform(0, width - side), rng.uniform(0, height - side)
        clear = True
        for bx, by, bw, bh in boxes_xywh:
            overlap_w = min(x + side, bx + bw) - max(x, bx)
            overlap_h = min(y + side, by + bh) - max(y, by)
            if overlap_w > 0 and overlap_h > 0 and overlap_w * overlap_h > 0.1 * min(side * side, bw * bh):
                clear = False
        if clear:
            return np.array([x, y, side, side], dtype=np.float32)
    return None
