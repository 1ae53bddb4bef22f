import json

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.data.coco import CocoDataset
from ovbridge.errors import VocabularyError
from ovbridge.evaluation import evaluate
from ovbridge.evaluation.run import predict
from ovbridge.structures import Detections


@pytest.fixture
def dataset(truth, tmp_path):
    path = tmp_path / "val.json"
    path.write_text(json.dumps(truth))
    for image in truth["images"]:
        Image.fromarray(np.full((100, 100, 3), image["id"], dtype=np.uint8)).save(tmp_path / image["file_name"])
    return CocoDataset.load(path)


def _oracle(dataset, names=None):
    """A detector that knows the answers: the first pixel tells which image it sees."""

    def detect(images):
        found = []
        for pixels in images:
            image = next(i for i in dataset.images if i.image_id == round(pixels[0, 0, 0]))
            found.append(
                Detections(
                    boxes_xyxy=torch.from_numpy(image.boxes_xyxy),
                    scores=torch.ones(len(image.class_ids)),
                    class_ids=torch.from_numpy(image.class_ids),
                    names=names or dataset.vocabulary.names,
                )
            )
        return found

    return detect


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_a_perfect_detector_scores_a_hundred(dataset, truth, tmp_path, batch_size):
    records = predict(_oracle(dataset), dataset, tmp_path, batch_size)
    assert evaluate(truth, records, "coco")["ap"] == {"all": pytest.approx(100.0)}


def test_another_order_of_names_is_refused(dataset, tmp_path):
    swapped = (*dataset.vocabulary.names[1:], dataset.vocabulary.names[0])
    with pytest.raises(VocabularyError, match="not those of the annotation file"):
        predict(_oracle(dataset, swapped), dataset, tmp_path)


def test_masks_become_rle(dataset, truth, tmp_path):
    def with_masks(images):
        return [
            Detections(
                boxes_xyxy=torch.tensor([[0.0, 0.0, 10.0, 10.0]]),
                scores=torch.ones(1),
                class_ids=torch.zeros(1, dtype=torch.int64),
                names=dataset.vocabulary.names,
                masks=torch.ones(1, 100, 100, dtype=torch.bool),
            )
            for _ in images
        ]

    record = predict(with_masks, dataset, tmp_path)[0]
    from pycocotools import mask as coco_mask

    assert coco_mask.area(record["segmentation"]) == 10000
    json.dumps(record)
