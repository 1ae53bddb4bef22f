"""50 real COCO photographs: crowds, RLE, polygons, odd sizes, from the files to training batches and scores."""

import itertools
import json

import numpy as np
import pytest
import torch

from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.inspection import inspect_dataset
from ovbridge.data.loading import DetectionDataset, ImageLabelDataset, MixedBatches
from ovbridge.data.masks import decode_masks
from ovbridge.data.ovd_files import TAGS_FILE, TRAIN_FILE, write_caption_tags, write_coco_ovd
from ovbridge.data.transforms import TrainTransform
from ovbridge.evaluation import evaluate
from ovbridge.structures import ImageLabels

TRANSFORM = TrainTransform(short_sides=(128,), max_long_side=213)


@pytest.fixture(scope="module")
def root(shared_data):
    return shared_data / "tiny_coco"


@pytest.fixture(scope="module")
def instances(root):
    return json.loads((root / "annotations" / "instances_train2017.json").read_text())


def test_every_image_and_annotation_survives(root):
    dataset = CocoDataset.load(root / "annotations" / "instances_train2017.json", with_masks=True)
    assert len(dataset) == 50
    assert sum(len(i.class_ids) for i in dataset.images) == 465  # 470 less 5 crowds
    for image in dataset.images:
        masks = decode_masks(image.segmentations, image.height, image.width)
        for mask, (x1, y1, x2, y2) in zip(masks, image.boxes_xyxy, strict=True):
            rows, columns = np.nonzero(mask)
            if len(rows):  # a polygon may be thinner than a pixel
                assert x1 - 2 <= columns.min() <= columns.max() <= x2 + 1
                assert y1 - 2 <= rows.min() <= rows.max() <= y2 + 1


def test_the_data_set_is_in_order(root):
    found = inspect_dataset(root)
    assert found.faults == []
    assert found.facts["instances_train2017.json"]["classes"] == {"base": 48, "novel": 17, "unused": 15}


def test_ov_coco_split_without_a_val_file(root, instances, tmp_path):
    counts = write_coco_ovd(root / "annotations", tmp_path)
    base = {c["id"] for c in json.loads((tmp_path / TRAIN_FILE).read_text())["categories"] if c["role"] == "base"}
    kept = [a for a in instances["annotations"] if a["category_id"] in base]
    assert counts["train"]["annotations"] == len(kept) == 372
    assert counts["train"]["images"] == len({a["image_id"] for a in kept}) == 47


def test_caption_tags_of_both_rules(root, tmp_path):
    paper = write_caption_tags(root / "annotations", tmp_path / "paper")
    words = write_caption_tags(root / "annotations", tmp_path / "words", rule="words")
    assert paper["images"] == 39
    assert words["tags"] > 1.3 * paper["tags"]
    tagged = load_tagged_images(tmp_path / "words" / TAGS_FILE)
    assert len(tagged) == words["images"]


def test_mixed_batches(root):
    dataset = CocoDataset.load(root / "annotations" / "instances_train2017.json", with_masks=True)
    tagged = load_tagged_images(root / "annotations" / "captions_train2017.json").with_labels()
    tags = {
        i.file_name: ImageLabels(
            boxes_xyxy=torch.tensor([[0.0, 0.0, i.width, i.height]]).expand(len(i.class_ids), 4),
            class_ids=torch.tensor(i.class_ids),
            scores=torch.ones(len(i.class_ids)),
        )
        for i in tagged.images
    }
    batches = MixedBatches(
        DetectionDataset(dataset, root / "train2017", TRANSFORM),
        ImageLabelDataset(tagged.images, root / "train2017", TRANSFORM, tags=tags),
        seed=0,
    )
    for kind, images in itertools.islice(batches, 6):
        for image in images:
            height, width = image.pixels.shape[1:]
            labels = image.boxes if kind == "det" else image.labels
            assert len(labels)
            limit = torch.tensor([width, height, width, height])
            assert (labels.boxes_xyxy >= 0).all()
            assert (labels.boxes_xyxy <= limit).all()
            if kind == "det":
                assert labels.masks.shape == (len(labels), height, width)


@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_scores_equal_pycocotools(instances, shift):
    rng = np.random.default_rng(0)
    results = [
        {
            "image_id": a["image_id"],
            "category_id": a["category_id"],
            "bbox": [float(v) for v in np.abs(np.array(a["bbox"]) + rng.normal(0, shift, 4))] if shift else a["bbox"],
            "score": float(rng.random()),
        }
        for a in instances["annotations"]
        if not a["iscrowd"]
    ]
    record = evaluate(instances, results, "coco")
    if not shift:
        assert record["ap"]["all"] == pytest.approx(100.0)
    import contextlib
    import io

    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = instances
        truth.createIndex()
        evaluator = COCOeval(truth, truth.loadRes(results), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    assert record["ap"]["all"] / 100 == pytest.approx(evaluator.stats[0], abs=1e-12)
    assert record["ap50"]["all"] / 100 == pytest.approx(evaluator.stats[1], abs=1e-12)


def test_lvis_file_is_scored_under_lvis_rules(shared_data):
    path = shared_data / "metadata" / "lvis_val_100.json"
    truth = json.loads(path.read_text())
    results = [{k: a[k] for k in ("image_id", "category_id", "bbox")} | {"score": 1.0} for a in truth["annotations"]]
    record = evaluate(path, results, "ov-lvis")
    assert record["ap"]["all"] == pytest.approx(100.0)
    assert set(record["ap"]) == {"all", "r", "c", "f"}
