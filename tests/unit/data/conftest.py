"""A small COCO-like data set on disk, one file at a time."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def payload():
    """Three images, classes in unsorted and sparse ids: a mug (base), a kite (novel), a crowd of mugs."""
    return {
        "images": [
            {"id": 10, "file_name": "a.jpg", "width": 40, "height": 30},
            {"id": 7, "file_name": "b.jpg", "width": 20, "height": 50},
            {"id": 900, "file_name": "c.jpg", "width": 30, "height": 30},
        ],
        "categories": [
            {"id": 55, "name": "kite", "role": "novel"},
            {"id": 3, "name": "mug", "role": "base"},
            {"id": 60, "name": "drum", "role": "unused"},
        ],
        "annotations": [
            {"id": 1, "image_id": 10, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
            {"id": 5, "image_id": 10, "category_id": 55, "bbox": [30, 20, 20, 5], "area": 100, "iscrowd": 0},
            {"id": 9, "image_id": 7, "category_id": 55, "bbox": [0, 0, 5, 5], "area": 25, "iscrowd": 0},
            {"id": 12, "image_id": 7, "category_id": 3, "bbox": [2, 2, 9, 9], "area": 81, "iscrowd": 1},
        ],
    }


@pytest.fixture
def write_json(tmp_path):
    def write(content, name="instances_train2017.json"):
        path = tmp_path / "annotations" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(content))
        return path

    return write


@pytest.fixture
def image_dir(tmp_path, payload):
    """The images of `payload`: noise, so that flips and crops show."""
    folder = tmp_path / "train2017"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for record in payload["images"]:
        pixels = rng.integers(0, 256, (record["height"], record["width"], 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / record["file_name"])
    return folder
