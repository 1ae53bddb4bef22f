"""Our OV-COCO numbers against the official evaluator's."""

import json

import pytest

from ovbridge.evaluation import evaluate


@pytest.fixture(scope="module")
def golden(goldens):
    return json.loads((goldens / "coco_eval.json").read_text())


def _results(golden):
    for image in golden["predictions"]:
        for record in image:
            x1, y1, x2, y2 = record["bbox_xyxy"]
            yield {**record, "bbox": [x1, y1, x2 - x1, y2 - y1]}


@pytest.fixture(scope="module")
def ours(golden):
    return {p: evaluate(golden["gt"], list(_results(golden)), p, strict=p == "ov-coco") for p in ("ov-coco", "coco")}


def test_base_and_novel_ap50(golden, ours):
    for official, group in (("AP50-seen", "base"), ("AP50-unseen", "novel")):
        assert ours["ov-coco"]["ap50"][group] == pytest.approx(golden["results"][official], abs=1e-9)


def test_ap_over_every_class_with_ground_truth(golden, ours):
    assert ours["coco"]["ap"]["all"] == pytest.approx(golden["results"]["AP"], abs=1e-9)
    assert ours["coco"]["ap50"]["all"] == pytest.approx(golden["results"]["AP50"], abs=1e-9)


def test_each_class(golden, ours):
    compared = 0
    for key, expected in golden["results"].items():
        if key.startswith("AP-"):
            compared += 1
            got = ours["coco"]["per_class"][key.removeprefix("AP-")]["ap"]
            assert got is None if expected is None else got == pytest.approx(expected, abs=1e-9), key
    assert compared == 80


def test_all_is_the_mean_over_48_and_17(ours):
    ap50 = ours["ov-coco"]["ap50"]
    assert ap50["all"] == pytest.approx((48 * ap50["base"] + 17 * ap50["novel"]) / 65)
