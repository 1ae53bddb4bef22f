import numpy as np
import pytest

from ovbridge.evaluation import evaluate
from ovbridge.evaluation.openimages_ap import average_precision, matched


def _d(image, bbox, score, category=1):
    return {"image_id": image, "category_id": category, "bbox": bbox, "score": score}


@pytest.fixture
def oid():
    """Image 1: a cat and a group of cats. Image 2: no cat (verified). Image 3: nobody looked for cats."""
    image = {"width": 100, "height": 100}
    return {
        "images": [
            {"id": 1, "file_name": "1.jpg", **image, "pos_category_ids": [1], "neg_category_ids": []},
            {"id": 2, "file_name": "2.jpg", **image, "pos_category_ids": [], "neg_category_ids": [1]},
            {"id": 3, "file_name": "3.jpg", **image, "pos_category_ids": [2], "neg_category_ids": []},
        ],
        "categories": [{"id": 1, "name": "cat"}, {"id": 2, "name": "dog"}],
        "annotations": [
            {"id": 1, "image_id": 1, "category_id": 1, "bbox": [0, 0, 20, 20], "is_group_of": 0, "iscrowd": 0},
            {"id": 2, "image_id": 1, "category_id": 1, "bbox": [50, 50, 50, 50], "is_group_of": 1, "iscrowd": 1},
        ],
    }


def test_groups_count_once_and_unverified_images_not_at_all(oid):
    results = [
        _d(1, [60, 60, 10, 10], 0.9),  # in the group: right
        _d(1, [80, 80, 10, 10], 0.8),  # in the group again: ignored
        _d(2, [0, 0, 20, 20], 0.7),  # verified absent: wrong
        _d(1, [0, 0, 20, 19], 0.6),  # the cat: right
        _d(3, [0, 0, 20, 20], 0.95),  # nobody looked: ignored
    ]
    record = evaluate(oid, results, "openimages")
    # Right, wrong, right of two objects: area = 1/2 * 1 + 1/2 * 2/3.
    assert record["ap50"]["all"] == pytest.approx(100 * (0.5 + 0.5 * 2 / 3))
    assert record["ap"] == {}
    assert record["classes_without_ground_truth"] == ["dog"]
    rows = np.array([[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in results])
    assert evaluate(oid, rows, "openimages")["ap50"] == record["ap50"]


def test_a_second_detection_of_a_box_is_wrong():
    twice = np.array([[0, 0, 10, 10], [0, 0, 10, 9], [50, 0, 10, 10]], float)
    one = np.array([[0, 0, 10, 10]], float)
    assert matched(twice, one, np.array([False])) == [True, False, False]
    assert matched(twice, one, np.array([True])) == [True, None, False]
    assert matched(twice[:0], one, np.array([False])) == []


def test_area_under_the_interpolated_curve():
    assert average_precision([0.9, 0.8], [False, True], 1) == 0.5
    assert average_precision([], [], 3) == 0.0
    assert average_precision([0.5, 0.9, 0.1], [True, True, False], 2) == 1.0
