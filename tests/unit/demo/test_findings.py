from __future__ import annotations

import numpy as np
import torch

from ovbridge.data.coco import CocoImage
from ovbridge.demo.findings import hit_scores
from ovbridge.structures import Detections

NAMES = ("mug", "kite")
ROLES = {"mug": "base", "kite": "novel"}


def test_hit_scores_by_hand() -> None:
    image = CocoImage(
        image_id=1,
        file_name="a.jpg",
        height=100,
        width=100,
        boxes_xyxy=np.array([[0, 0, 10, 10], [50, 50, 70, 70]], np.float32),
        class_ids=np.array([0, 1]),
    )
    empty = CocoImage(
        image_id=2, file_name="b.jpg", height=9, width=9, boxes_xyxy=np.zeros((0, 4), np.float32), class_ids=np.zeros(0)
    )
    found = Detections(
        # A right mug, the same mug again, a kite on the mug, a right kite, a kite that overlaps by a quarter.
        boxes_xyxy=torch.tensor(
            [[0, 0, 10, 10], [0, 0, 10, 9], [0, 0, 10, 10], [50, 50, 70, 68], [60, 60, 80, 80]]
        ).float(),
        scores=torch.tensor([0.9, 0.8, 0.7, 0.6, 0.5]),
        class_ids=torch.tensor([0, 0, 1, 1, 1]),
        names=NAMES,
    )
    scores = hit_scores([image, empty], {1: found, 2: found.select(torch.tensor([0]))}, ROLES)
    np.testing.assert_allclose(scores["base"], [0.9])
    np.testing.assert_allclose(scores["novel"], [0.6])
