"""Four objects of three classes on two images, and detections whose AP can be worked out by hand."""

import pytest


def _detection(image_id, category_id, bbox, score):
    return {"image_id": image_id, "category_id": category_id, "bbox": bbox, "score": score}


@pytest.fixture
def truth():
    """Mug (base) twice, kite (novel) once, drum (unused) once; fox (novel) never."""
    return {
        "images": [
            {"id": 1, "file_name": "a.jpg", "width": 100, "height": 100},
            {"id": 2, "file_name": "b.jpg", "width": 100, "height": 100},
        ],
        "categories": [
            {"id": 3, "name": "mug", "role": "base"},
            {"id": 5, "name": "kite", "role": "novel"},
            {"id": 8, "name": "drum", "role": "unused"},
            {"id": 9, "name": "fox", "role": "novel"},
        ],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 10, 10]},
            {"id": 2, "image_id": 2, "category_id": 3, "bbox": [50, 50, 20, 20]},
            {"id": 3, "image_id": 1, "category_id": 5, "bbox": [40, 0, 10, 10]},
            {"id": 4, "image_id": 2, "category_id": 8, "bbox": [0, 60, 30, 30]},
        ],
    }


@pytest.fixture
def detections():
    """Mug: hit, miss, hit (AP50 = 51 points at 1 and 50 at 2/3 of 101). Kite: IoU 2/3 only. Drum: nothing."""
    return [
        _detection(1, 3, [0, 0, 10, 10], 0.9),
        _detection(1, 3, [70, 70, 10, 10], 0.8),
        _detection(2, 3, [50, 50, 20, 20], 0.7),
        _detection(1, 5, [42, 0, 10, 10], 0.6),
    ]


@pytest.fixture
def mug_ap():
    return 100 * (51 * 1.0 + 50 * 2 / 3) / 101
