"""Running a detector over a data set."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.console import Ticker
from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_reading import read_image
from ovbridge.errors import VocabularyError
from ovbridge.structures import Detections

DetectBatch = Callable[[Sequence[np.ndarray]], Sequence[Detections]]
"""Images [H, W, 3] uint8 RGB → one `Detections` each, boxes in the pixels of its image."""


def predict(
    detect_batch: DetectBatch, dataset: CocoDataset, image_dir: Path, batch_size: int = 1
) -> list[dict[str, Any]]:
    """COCO result records of every image of a data set, with `segmentation` (RLE) where the detector gives masks.

    Raises:
        VocabularyError: The detector's names are not the data set's, in order.
        DataError: An image is missing, broken, or of another size than the annotation file says.
    """
    records: list[dict[str, Any]] = []
    with Ticker("detect", len(dataset)) as tick:
        for start in range(0, len(dataset), batch_size):
            group = dataset.images[start : start + batch_size]
            pixels = [read_image(Path(image_dir) / i.file_name, expected_hw=(i.height, i.width)) for i in group]
            for image, found in zip(group, detect_batch(pixels), strict=True):
                if found.names != dataset.vocabulary.names:
                    raise VocabularyError(
                        "the detector's class names are not those of the annotation file, in its order: "
                        "their columns would be scored as other classes"
                    )
                records.extend(_records(found, image.image_id, dataset.vocabulary.category_ids))
            tick(len(group))
    return records


def _records(found: Detections, image_id: int, category_ids: Sequence[int]) -> list[dict[str, Any]]:
    records = found.to_coco(image_id, category_ids)
    if found.masks is not None:
        from pycocotools import mask as coco_mask

        for record, mask in zip(records, found.masks.cpu().numpy(), strict=True):
            rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
            record["segmentation"] = {"size": rle["size"], "counts": rle["counts"].decode()}
    return records
