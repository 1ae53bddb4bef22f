"""A COCO-format annotation file as checked arrays.

Legend: N boxes of an image. Class ids are columns of the vocabulary, not category ids.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.console import stderr
from ovbridge.data.annotation_check import image_file_name, is_flat, load_annotations
from ovbridge.data.image_reading import read_image
from ovbridge.data.masks import Segmentation, segmentation_fault
from ovbridge.data.splits import vocabulary_of
from ovbridge.errors import DataError
from ovbridge.vocabulary import Vocabulary

__all__ = ["CocoDataset", "CocoImage", "read_image"]


@dataclass(frozen=True, kw_only=True)
class CocoImage:
    """One image and its boxes, crowd regions left out."""

    image_id: int
    file_name: str
    """Relative to the images folder; also the key of the image in a label store."""
    height: int
    width: int
    boxes_xyxy: np.ndarray
    """[N, 4] float32, pixels of the image, clipped to it."""
    class_ids: np.ndarray
    """[N] int64, columns of the vocabulary."""
    segmentations: tuple[Segmentation, ...] = ()
    """[N] polygons or RLE where masks were asked for, else empty."""


@dataclass(frozen=True, kw_only=True)
class CocoDataset:
    """Images in file order and the vocabulary of their class ids."""

    vocabulary: Vocabulary
    images: tuple[CocoImage, ...]

    @classmethod
    def load(cls, annotations: Path, *, with_masks: bool = False, federated: bool | None = False) -> CocoDataset:
        """Read and check a file; boxes without area are left out with a note, as Detectron2 does in training.

        Args:
            annotations: COCO-format JSON.
            with_masks: Keep the segmentations; an annotation without one is then an error.
            federated: True for an LVIS file, False for any other, None where either will do.

        Raises:
            DataError: With the offending id, see `annotation_check.faults`.
        """
        payload = load_annotations(Path(annotations), federated=federated)
        vocabulary = vocabulary_of(payload["categories"], str(annotations))
        boxes_of: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
        flat: list[int] = []
        for annotation in payload["annotations"]:
            if is_flat(annotation["bbox"]):
                flat.append(annotation["id"])
            elif not annotation.get("iscrowd"):
                boxes_of[annotation["image_id"]].append(annotation)
        if flat:
            shown = ", ".join(map(str, flat[:5])) + (", …" if len(flat) > 5 else "")
            stderr.print(f"note: {annotations}: left out {len(flat)} boxes without area (annotation ids {shown})")
        column = vocabulary.column_of_category()
        images = tuple(
            _coco_image(record, boxes_of[record["id"]], column, annotations, with_masks=with_masks)
            for record in payload["images"]
        )
        return cls(vocabulary=vocabulary, images=images)

    def __len__(self) -> int:
        return len(self.images)

    def image_counts(self) -> np.ndarray:
        """[K] in how many images each class has a box."""
        counts = np.zeros(len(self.vocabulary), dtype=np.int64)
        for image in self.images:
            counts[np.unique(image.class_ids)] += 1
        return counts


def _coco_image(
    record: dict[str, Any],
    annotations: list[dict[str, Any]],
    column: dict[int, int],
    source: Path,
    *,
    with_masks: bool,
) -> CocoImage:
    height, width = int(record["height"]), int(record["width"])
    xywh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    xyxy = np.concatenate([xywh[:, :2], xywh[:, :2] + xywh[:, 2:]], axis=1)
    xyxy = xyxy.clip(0, [width, height, width, height])
    if with_masks:
        for annotation in annotations:
            fault = segmentation_fault(annotation.get("segmentation"), height, width)
            if fault:
                raise DataError(f"{source}: annotation {annotation['id']} has no usable segmentation: {fault}")
    file_name = image_file_name(record)
    assert file_name is not None
    return CocoImage(
        image_id=record["id"],
        file_name=file_name,
        height=height,
        width=width,
        boxes_xyxy=xyxy.astype(np.float32),
        class_ids=np.array([column[a["category_id"]] for a in annotations], dtype=np.int64),
        segmentations=tuple(a["segmentation"] for a in annotations) if with_masks else (),
    )
