"""The evaluator behind our adapter against pycocotools and lvis-api, on random cases that try to be awkward."""

from __future__ import annotations

import contextlib
import copy
import functools
import io
import logging

import numpy as np
import pytest

from ovbridge.evaluation.coco_ap import class_precision

TOLERANCE = 1e-12
SMALL, CROWDED = [0, 5, 20], [0, 0, 5, 5, 5, 20, 20, 40, 60, 500]
FAST, SLOW = range(30), range(30, 230)


def _box(rng, low=0.5):
    return [float(v) for v in (rng.uniform(0, 150), rng.uniform(0, 100), rng.uniform(low, 60), rng.uniform(low, 60))]


def _disc_rle(bbox, height=150, width=200):
    """A disc in a box as RLE; pixel-exact copies give IoU 1, shifted ones odd fractions."""
    from pycocotools import mask as coco_mask

    x, y, w, h = bbox
    rows, columns = np.mgrid[:height, :width] + 0.5
    disc = ((columns - x - w / 2) / max(w / 2, 1)) ** 2 + ((rows - y - h / 2) / max(h / 2, 1)) ** 2 <= 1
    rle = coco_mask.encode(np.asfortranarray(disc.astype(np.uint8)))
    return {"size": rle["size"], "counts": rle["counts"].decode()}


@functools.cache
def random_case(seed: int, *, federated: bool = False, masks: bool = False):
    """Images without boxes, classes without boxes, crowds, tied scores, equal boxes, 0 to 500 detections an image."""
    rng = np.random.default_rng(seed)
    n_images, n_classes = int(rng.integers(1, 7)), int(rng.integers(1, 8))
    ids = sorted((rng.choice(40, n_classes, replace=False) + 1).tolist())
    unseen = {c for c in ids if rng.random() < 0.2}
    truth = {
        "images": [{"id": 7 * k + 3, "file_name": f"{k}.jpg", "width": 200, "height": 150} for k in range(n_images)],
        "categories": [{"id": c, "name": f"class {c}"} for c in ids],
        "annotations": [],
    }
    detections = []

    def detect(image_id, category, bbox, score):
        record = {"image_id": image_id, "category_id": category, "bbox": bbox, "score": float(score)}
        detections.append(record | ({"segmentation": _disc_rle(bbox)} if masks else {}))

    for image in truth["images"]:
        for _ in range(int(rng.integers(0, 10))):
            category, bbox = int(rng.choice(ids)), _box(rng, low=4)
            if rng.random() < 0.3:
                bbox = [float(round(v)) for v in bbox]
            if category not in unseen:
                annotation = {
                    "id": len(truth["annotations"]) + 1,
                    "image_id": image["id"],
                    "category_id": category,
                    "bbox": bbox,
                    "area": bbox[2] * bbox[3],
                    "iscrowd": int(not federated and rng.random() < 0.15),
                    "segmentation": _disc_rle(bbox) if masks else [[0.0, 0.0, 1.0, 0.0, 1.0, 1.0]],
                }
                truth["annotations"].append(annotation)
            for _ in range(int(rng.integers(0, 4))):
                shift = rng.normal(0, rng.choice([0.0, 1.0, 5.0]), 4)
                moved = [float(v) for v in np.array(bbox) + shift]
                moved[2:] = [max(v, 0.5) for v in moved[2:]]
                score = rng.choice([0.1, 0.5, 0.9]) if rng.random() < 0.5 else rng.random()
                detect(image["id"], category, moved, score)
        for _ in range(int(rng.choice(SMALL if masks else CROWDED))):
            detect(image["id"], int(rng.choice(ids)), _box(rng), rng.integers(0, 20) / 20)
    if federated:
        _federate(truth, rng)
    order = rng.permutation(len(detections))
    return truth, [detections[k] for k in order]


def _federate(truth, rng):
    for category in truth["categories"]:
        category["frequency"] = str(rng.choice(["r", "c", "f"]))
    for image in truth["images"]:
        present = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        ids = [c["id"] for c in truth["categories"]]
        image["neg_category_ids"] = [c for c in ids if c not in present and rng.random() < 0.5]
        image["not_exhaustive_category_ids"] = [
            c for c in ids if c not in image["neg_category_ids"] and rng.random() < 0.2
        ]


def _pycocotools(truth, detections, iou_type):
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        gt = COCO()
        gt.dataset = copy.deepcopy(truth)
        gt.createIndex()
        found = gt.loadRes([{k: v for k, v in d.items() if k != "bbox" or iou_type == "bbox"} for d in detections])
        evaluator = COCOeval(gt, found, iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    return evaluator.eval["precision"][:, :, :, 0, -1], evaluator.eval["recall"][:, :, 0, -1]


def _lvis_api(truth, detections, iou_type, monkeypatch):
    # lvis 0.5.3 still says np.float, which NumPy 2 no longer has.
    monkeypatch.setattr(np, "float", float, raising=False)
    from lvis import LVIS, LVISEval, LVISResults

    class FromDict(LVIS):
        def __init__(self, dataset):
            self.logger = logging.getLogger("lvis")
            self.dataset = dataset
            self._create_index()

    logging.disable(logging.CRITICAL)
    try:
        gt = FromDict(copy.deepcopy(truth))
        evaluator = LVISEval(gt, LVISResults(gt, copy.deepcopy(detections), max_dets=300), iou_type)
        evaluator.evaluate()
        evaluator.accumulate()
    finally:
        logging.disable(logging.NOTSET)
    return evaluator.eval["precision"][:, :, :, 0], evaluator.eval["recall"][:, :, 0]


def _compare(seed, *, federated, masks, monkeypatch):
    truth, detections = random_case(seed, federated=federated, masks=masks)
    iou_type = "segm" if masks else "bbox"
    ours = class_precision(
        truth, detections, iou_type=iou_type, federated=federated, max_detections=300 if federated else 100
    )
    if not detections:  # pycocotools and lvis-api cannot load an empty list.
        assert set(np.unique(ours.precision_TRK)) <= {-1.0, 0.0}
        return
    if federated:
        precision, recall = _lvis_api(truth, detections, iou_type, monkeypatch)
    else:
        precision, recall = _pycocotools(truth, detections, iou_type)
    assert ours.precision_TRK.shape == precision.shape
    np.testing.assert_allclose(ours.precision_TRK, precision, rtol=0, atol=TOLERANCE)
    np.testing.assert_allclose(ours.recall_TK, recall, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("federated", [False, True], ids=["coco", "lvis"])
def test_boxes_equal_the_reference(federated, monkeypatch):
    # lvis-api is slow; the slow test gives it its two hundred.
    for seed in FAST[:12] if federated else FAST:
        _compare(seed, federated=federated, masks=False, monkeypatch=monkeypatch)


@pytest.mark.parametrize("federated", [False, True], ids=["coco", "lvis"])
def test_masks_equal_the_reference(federated, monkeypatch):
    for seed in FAST[:4]:
        _compare(seed, federated=federated, masks=True, monkeypatch=monkeypatch)


@pytest.mark.slow
@pytest.mark.parametrize("federated", [False, True], ids=["coco", "lvis"])
def test_two_hundred_more(federated, monkeypatch):
    for seed in SLOW:
        _compare(seed, federated=federated, masks=seed % 8 == 0, monkeypatch=monkeypatch)


def test_the_cases_are_as_awkward_as_they_claim():
    cases = [random_case(seed) for seed in FAST]
    per_image = [
        sum(d["image_id"] == i["id"] for d in detections) for truth, detections in cases for i in truth["images"]
    ]
    assert min(per_image) == 0
    assert max(per_image) >= 500
    assert any(a["iscrowd"] for truth, _ in cases for a in truth["annotations"])
    assert any(
        {c["id"] for c in truth["categories"]} > {a["category_id"] for a in truth["annotations"]} for truth, _ in cases
    )
    scores = [d["score"] for _, detections in cases for d in detections]
    assert len(set(scores)) < len(scores) / 2
