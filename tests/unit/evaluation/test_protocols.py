import json

import numpy as np
import pytest

from ovbridge.errors import DataError
from ovbridge.evaluation import evaluate
from ovbridge.evaluation.protocols import precision_recall_curves

# IoU of the kite's detection is 8 / 12: found at 0.50, 0.55, 0.60 and 0.65, at 100 %.
KITE_AP50, KITE_AP = 100.0, 40.0


def test_ov_coco_means_over_base_novel_and_both(truth, detections, mug_ap):
    record = evaluate(truth, detections, "ov-coco")
    assert record["ap50"] == pytest.approx({"base": mug_ap, "novel": KITE_AP50, "all": (mug_ap + KITE_AP50) / 2})
    assert record["ap"] == pytest.approx({"base": mug_ap, "novel": KITE_AP, "all": (mug_ap + KITE_AP) / 2})
    assert record["classes_without_ground_truth"] == ["fox"]
    assert record["per_class"]["drum"] == {"ap50": 0.0, "ap": 0.0, "role": "unused", "instances": 1}
    assert record["per_class"]["fox"] == {"ap50": None, "ap": None, "role": "novel", "instances": 0}
    assert list(record["per_class"]) == ["mug", "kite", "drum", "fox"]
    assert (record["protocol"], record["images"], record["iou_type"]) == ("ov-coco", 2, "bbox")


def test_strict_has_no_mean_where_a_class_has_no_ground_truth(truth, detections, mug_ap):
    record = evaluate(truth, detections, "ov-coco", strict=True)
    assert record["ap50"] == {"base": pytest.approx(mug_ap), "novel": None, "all": None}


def test_coco_counts_every_class(truth, detections, mug_ap):
    assert evaluate(truth, detections, "coco")["ap50"] == {"all": pytest.approx((mug_ap + KITE_AP50 + 0) / 3)}


def test_lvis_groups_by_frequency(truth, detections, mug_ap):
    for category, frequency in zip(truth["categories"], "fcrr", strict=True):
        category["frequency"] = frequency
    for image in truth["images"]:
        image["neg_category_ids"], image["not_exhaustive_category_ids"] = [], []
    # The false mug on image 1 counts: the image holds a mug, so it was searched for mugs.
    record = evaluate(truth, detections, "ov-lvis")
    assert record["ap50"] == pytest.approx({"all": (mug_ap + KITE_AP50) / 3, "f": mug_ap, "c": KITE_AP50, "r": 0.0})
    assert record["ap"]["c"] == pytest.approx(KITE_AP)
    detections.append({"image_id": 2, "category_id": 5, "bbox": [1, 1, 9, 9], "score": 1.0})
    # Image 2 was never searched for kites, so this one is ignored; with the class marked absent it is an error.
    assert evaluate(truth, detections, "ov-lvis")["ap50"]["c"] == pytest.approx(KITE_AP50)
    truth["images"][1]["neg_category_ids"] = [5]
    assert evaluate(truth, detections, "ov-lvis")["ap50"]["c"] == pytest.approx(KITE_AP50 / 2)


def test_files_give_the_same_and_name_the_data_set(truth, detections, tmp_path):
    (tmp_path / "val.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(detections))
    record = evaluate(tmp_path / "val.json", tmp_path / "found.json", "ov-coco")
    assert record == {**evaluate(truth, detections, "ov-coco"), "dataset": "val"}


def test_no_detections_score_zero(truth):
    record = evaluate(truth, [], "ov-coco")
    assert record["ap50"] == {"base": 0.0, "novel": 0.0, "all": 0.0}


def test_curves(truth, detections):
    curves = precision_recall_curves(truth, detections, "ov-coco")
    assert list(curves) == ["mug", "kite", "drum"]
    np.testing.assert_allclose(curves["mug"], [1.0] * 51 + [2 / 3] * 50)
    np.testing.assert_allclose(precision_recall_curves(truth, detections, "ov-coco", iou=0.75)["kite"], 0)


def test_the_inputs_are_left_as_they_are(truth, detections):
    before = json.dumps([truth, detections])
    evaluate(truth, detections, "ov-coco")
    assert json.dumps([truth, detections]) == before


def test_protocol_and_file_must_agree(truth, detections):
    with pytest.raises(DataError, match="no image carries neg_category_ids"):
        evaluate(truth, detections, "lvis")
    for image in truth["images"]:
        image["neg_category_ids"] = []
    with pytest.raises(DataError, match=r"image 1 carries neg_category_ids.*not COCO"):
        evaluate(truth, detections, "coco")
    with pytest.raises(DataError, match=r"category 3 \(mug\) has frequency None"):
        evaluate(truth, detections, "lvis")


def test_masks_need_segmentations(truth, detections):
    rle = {"size": [100, 100], "counts": [10000]}
    with pytest.raises(DataError, match="annotation 1 has no segmentation"):
        evaluate(truth, [{**d, "segmentation": rle} for d in detections], "coco", iou_type="segm")


WHOLE = {"size": [100, 80], "counts": [0, 8000]}


def _with_masks(truth, detections):
    for image in truth["images"]:
        image["width"] = 80
    for annotation in truth["annotations"]:
        annotation["segmentation"] = WHOLE
    return [{**d, "segmentation": WHOLE} for d in detections]


@pytest.mark.parametrize(
    "broken", [{"size": [80, 100], "counts": [0, 8000]}, {"size": [100, 80], "counts": [0, 9]}, [[1, 2]], [[]], 5]
)
def test_masks_that_do_not_fit_their_image_are_named(truth, detections, broken):
    found = _with_masks(truth, detections)
    assert evaluate(truth, found, "coco", iou_type="segm")["ap50"]["all"] > 0
    found[1]["segmentation"] = broken
    with pytest.raises(DataError, match=r"detection number 1 \(image 1\) has no usable segmentation"):
        evaluate(truth, found, "coco", iou_type="segm")
    truth["annotations"][2]["segmentation"] = broken
    with pytest.raises(DataError, match="annotation 3 has no usable segmentation"):
        evaluate(truth, [], "coco", iou_type="segm")


def test_openimages_compares_no_masks(truth, detections):
    found = _with_masks(truth, detections)
    assert evaluate(truth, found, "openimages")["iou_type"] == "bbox"
    with pytest.raises(DataError, match="openimages compares boxes alone"):
        evaluate(truth, found, "openimages", iou_type="segm")


def test_keys_that_no_score_depends_on_may_hold_anything(truth, detections):
    expected = evaluate(truth, detections, "coco")
    for record in (*truth["images"], *truth["categories"], *truth["annotations"]):
        record |= {"license": "mine", "coco_url": 5, "supercategory": 5, "segmentation": "none", "num_keypoints": 1.5}
    truth["annotations"][0]["iscrowd"] = None
    truth["images"][0]["width"] = 100.0
    odd = [{**d, "id": "x", "area": "large", "segmentation": 5, "keypoints": "none"} for d in detections]
    assert evaluate(truth, odd, "coco") == expected
