"""The oracle knows exactly what it was told."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.errors import DataError, TeacherError
from ovbridge.teachers.oracle import KnownObject, OracleProposer, image_key
from ovbridge.teachers.protocol import Proposer

IMAGE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
OBJECTS = {
    image_key(IMAGE): [
        KnownObject(names=("mug", "cup"), box_xyxy=(0.0, 0.0, 1.0, 1.0)),
        KnownObject(names=("wine glass",), box_xyxy=(2.0, 1.0, 5.0, 4.0)),
    ]
}


def test_queries_select_objects() -> None:
    oracle: Proposer = OracleProposer(OBJECTS)
    (found,) = oracle.propose([IMAGE], [["all objects", "every cup", "every wine_glass", "every wine glass", "mug"]])
    assert found[0].boxes_xyxy.tolist() == [[2, 1, 5, 4], [0, 0, 1, 1]]
    assert found[0].scores[0] > found[0].scores[1]
    assert found[1].boxes_xyxy.tolist() == [[0, 0, 1, 1]]
    assert len(found[2]) == 0
    assert found[3].boxes_xyxy.tolist() == [[2, 1, 5, 4]]
    assert len(found[4]) == 0


def test_jitter_and_recall_repeat_by_seed() -> None:
    first, again = (OracleProposer(OBJECTS, jitter=0.1, seed=3).propose([IMAGE], [["all objects"]]) for _ in range(2))
    assert torch.equal(first[0][0].boxes_xyxy, again[0][0].boxes_xyxy)
    assert not torch.equal(first[0][0].boxes_xyxy, torch.tensor([[2.0, 1, 5, 4], [0, 0, 1, 1]]))
    assert len(OracleProposer(OBJECTS, recall=0.0).propose([IMAGE], [["all objects"]])[0][0]) == 0


def test_unknown_image_is_refused() -> None:
    with pytest.raises(TeacherError, match="6x4"):
        OracleProposer({}).propose([IMAGE], [["all objects"]])


def test_reads_coco(tmp_path: Path) -> None:
    Image.fromarray(IMAGE).save(tmp_path / "a.png")
    record = {
        "images": [{"id": 1, "file_name": "a.png"}],
        "categories": [{"id": 2, "name": "mug"}],
        "annotations": [
            {"image_id": 1, "category_id": 2, "bbox": [1, 1, 2, 3]},
            {"image_id": 1, "category_id": 2, "bbox": [0, 0, 6, 4], "iscrowd": 1},
        ],
    }
    (tmp_path / "i.json").write_text(json.dumps(record))
    found = OracleProposer.from_coco(tmp_path / "i.json", tmp_path).propose([IMAGE], [["every mug"]])[0][0]
    assert found.boxes_xyxy.tolist() == [[1, 1, 3, 4]]
    (tmp_path / "i.json").write_text("{}")
    with pytest.raises(DataError, match="not a COCO"):
        OracleProposer.from_coco(tmp_path / "i.json", tmp_path)
