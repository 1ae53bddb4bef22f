"""Our transforms against the official data mapper's output on the same picture."""

import json

import numpy as np
import pytest
import torch

from ovbridge.data.image_reading import read_image
from ovbridge.data.transforms import TrainTransform
from ovbridge.images import resize_pixels, resized_size
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("source", "short", "long"), [("box", 800, 1333), ("image", 400, 667)])
def test_mapper_golden(goldens, source, short, long, flip):
    expected = np.load(goldens / "mapper.npz")
    given = json.loads((goldens / "mapper.json").read_text())
    case = f"{source}_{'flip' if flip else 'noflip'}"
    rkd = torch.tensor(given["rkd_boxes_in"][:5]).float()
    pis = [record[0] for record in given["pis_in"].values()]
    gt_xywh = torch.tensor(given["gt_boxes_xywh_in"]).float()
    transform = TrainTransform(short_sides=(short,), max_long_side=long, flip_probability=float(flip))
    image = transform(
        read_image(goldens / "images" / "img0.png"),
        image_id=1,
        generator=torch.Generator().manual_seed(0),
        boxes=BoxLabels(
            boxes_xyxy=torch.cat([gt_xywh[:, :2], gt_xywh[:, :2] + gt_xywh[:, 2:]], dim=1),
            class_ids=torch.tensor([0, 1]),
        ),
        labels=ImageLabels(
            boxes_xyxy=torch.tensor(pis).float(), class_ids=torch.tensor([0, 16]), scores=torch.tensor([0.97, 0.99])
        ),
        regions=RegionTargets(boxes_xyxy=rkd, embeddings=torch.zeros(5, 2), scores=torch.ones(5)),
    )
    assert tuple(image.pixels.shape) == tuple(expected[f"{case}/image_shape"])
    assert int(image.pixels.long().sum()) == int(expected[f"{case}/image_sum"])
    np.testing.assert_array_equal(image.regions.boxes_xyxy.numpy(), expected[f"{case}/distill_boxes"])
    if source == "box":
        # The golden run fed whole-number human boxes, which the official code truncates; ours keep their fractions.
        assert np.abs(image.boxes.boxes_xyxy.numpy() - expected[f"{case}/gt_boxes"]).max() < 1
    else:
        np.testing.assert_array_equal(image.labels.boxes_xyxy.numpy(), expected[f"{case}/pis_boxes"])
        np.testing.assert_array_equal(image.labels.class_ids.numpy(), expected[f"{case}/pis_classes"])


@pytest.mark.parametrize(
    ("name", "resized"),
    [("img0", "img0_resized_800x1067"), ("img1", "img1_resized_1067x800"), ("img2", "img2_resized_800x1201")],
)
def test_resize_is_bit_equal_to_the_official_one(goldens, name, resized):
    pixels = read_image(goldens / "images" / f"{name}.png")
    expected = read_image(goldens / "images" / f"{resized}.png")
    assert resized_size(*pixels.shape[:2], short_side=800, long_side=1333) == expected.shape[:2]
    np.testing.assert_array_equal(resize_pixels(pixels, expected.shape[:2]), expected)
