"""fixed-AP against lvis-api and pycocotools without a limit an image; results as numbers against records."""

import contextlib
import io
import json

import numpy as np
import pytest

from ovbridge.evaluation import evaluate, protocols
from ovbridge.evaluation.coco_ap import best_per_class, best_per_image, class_precision


def _case(seed, *, images=12, classes=4, per_image=30):
    """Random boxes and detections with ties; every image was searched for every class."""
    rng = np.random.default_rng(seed)
    shape = {"width": 100, "height": 100, "neg_category_ids": [], "not_exhaustive_category_ids": []}
    truth = {
        "images": [{"id": i + 1, "file_name": f"{i}.jpg", **shape} for i in range(images)],
        "categories": [{"id": k + 1, "name": f"c{k}", "frequency": "rcf"[k % 3]} for k in range(classes)],
        "annotations": [],
    }
    for image in truth["images"]:
        image["neg_category_ids"] = list(range(1, classes + 1))
        for _ in range(rng.integers(0, 6)):
            xywh = [*rng.integers(0, 60, 2).tolist(), *rng.integers(5, 40, 2).tolist()]
            number = len(truth["annotations"]) + 1
            category = int(rng.integers(1, classes + 1))
            record = {"id": number, "image_id": image["id"], "category_id": category, "bbox": xywh, "iscrowd": 0}
            truth["annotations"].append({**record, "area": xywh[2] * xywh[3], "segmentation": []})
        present = {a["category_id"] for a in truth["annotations"] if a["image_id"] == image["id"]}
        image["neg_category_ids"] = [k for k in image["neg_category_ids"] if k not in present]
    rows = np.column_stack(
        [
            np.repeat(np.arange(1, images + 1), per_image),
            rng.integers(0, 60, (images * per_image, 2)),
            rng.integers(5, 40, (images * per_image, 2)),
            rng.integers(1, 40, images * per_image) / 40,
            rng.integers(1, classes + 1, images * per_image),
        ]
    ).astype(float)
    records = [
        {"image_id": int(r[0]), "bbox": r[1:5].tolist(), "score": float(r[5]), "category_id": int(r[6])} for r in rows
    ]
    return truth, records, rows


@pytest.mark.parametrize("seed", range(6))
def test_no_limit_an_image_equals_lvis_api(seed, tmp_path, monkeypatch):
    # lvis-api still says np.float.
    monkeypatch.setattr(np, "float", float, raising=False)
    lvis = pytest.importorskip("lvis")

    truth, records, rows = _case(seed)
    (tmp_path / "gt.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        gt = lvis.LVIS(str(tmp_path / "gt.json"))
        judge = lvis.LVISEval(gt, lvis.LVISResults(gt, [dict(r) for r in records], max_dets=-1), "bbox")
        judge.params.max_dets = -1
        judge.evaluate()
        judge.accumulate()
    expected = judge.eval["precision"][:, :, :, 0]
    for given in (records, rows):
        ours = class_precision(truth, given, federated=True, max_detections=None).precision_TRK
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_no_limit_an_image_equals_pycocotools():
    coco = pytest.importorskip("pycocotools.coco")
    from pycocotools.cocoeval import COCOeval

    truth, records, rows = _case(3, per_image=150)
    truth["images"] = [{k: v for k, v in i.items() if "category_ids" not in k} for i in truth["images"]]
    with contextlib.redirect_stdout(io.StringIO()):
        gt = coco.COCO()
        gt.dataset = truth
        gt.createIndex()
        judge = COCOeval(gt, gt.loadRes([dict(r) for r in records]), "bbox")
        judge.params.maxDets = [1, 10, 100_000]
        judge.evaluate()
        judge.accumulate()
    expected = judge.eval["precision"][:, :, :, 0, -1]
    for given in (records, rows):
        ours = class_precision(truth, given, max_detections=None).precision_TRK
        np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-12)


def test_the_cap_is_a_class_over_the_data_set(monkeypatch):
    truth, records, rows = _case(1)
    monkeypatch.setattr(protocols, "FIXED_AP_DETECTIONS", 20)
    kept = best_per_class(records, 20)
    assert {sum(r["category_id"] == k for r in kept) for k in range(1, 5)} == {20}
    for k in range(1, 5):
        scores = sorted((r["score"] for r in records if r["category_id"] == k), reverse=True)[:20]
        assert sorted((r["score"] for r in kept if r["category_id"] == k), reverse=True) == scores
    by_records = evaluate(truth, records, "fixed-AP")
    assert by_records["ap50"] == evaluate(truth, rows, "fixed-AP")["ap50"]
    assert set(by_records["ap50"]) == {"all", "r", "c", "f"}
    monkeypatch.setattr(protocols, "FIXED_AP_DETECTIONS", 10_000)
    assert evaluate(truth, records, "fixed-AP")["ap50"]["all"] >= by_records["ap50"]["all"]


def test_numbers_and_records_keep_the_same_rows():
    _, records, rows = _case(2)
    kept = best_per_image(rows, 7)
    expected = [[r["image_id"], *r["bbox"], r["score"], r["category_id"]] for r in best_per_image(records, 7)]
    np.testing.assert_array_equal(kept, np.array(expected))
    assert len(best_per_image(rows[:0], 7)) == 0
