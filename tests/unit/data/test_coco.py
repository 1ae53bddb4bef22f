import numpy as np
import pytest

from ovbridge.data.coco import CocoDataset
from ovbridge.data.masks import decode_masks
from ovbridge.errors import DataError


def test_boxes_become_clipped_xyxy_and_columns_follow_category_ids(payload, write_json):
    dataset = CocoDataset.load(write_json(payload))
    assert dataset.vocabulary.names == ("mug", "kite", "drum")
    assert dataset.vocabulary.category_ids == (3, 55, 60)
    assert dataset.vocabulary.roles == ("base", "novel", "unused")
    first = dataset.images[0]
    assert (first.image_id, first.file_name, first.height, first.width) == (10, "a.jpg", 30, 40)
    np.testing.assert_array_equal(first.boxes_xyxy, [[1, 2, 11, 22], [30, 20, 40, 25]])
    np.testing.assert_array_equal(first.class_ids, [0, 1])
    assert dataset.image_counts().tolist() == [1, 2, 0]


def test_crowds_take_no_part(payload, write_json):
    assert CocoDataset.load(write_json(payload)).images[1].class_ids.tolist() == [1]


def test_boxes_without_area_are_left_out_with_a_note(payload, write_json, capsys):
    payload["annotations"].append({"id": 77, "image_id": 900, "category_id": 3, "bbox": [5, 5, 0, 8]})
    dataset = CocoDataset.load(write_json(payload))
    assert len(dataset.images[2].boxes_xyxy) == 0
    assert "77" in capsys.readouterr().err


def test_masks_from_polygon_and_both_kinds_of_rle():
    polygon = [[2.0, 1.0, 5.0, 1.0, 5.0, 4.0, 2.0, 4.0]]
    # Column-major runs over a 6 x 8 image: columns 2, 3, 4 are set in rows 1, 2, 3.
    counts = [2 * 6 + 1, 3, 3, 3, 3, 3, 2 + 3 * 6]
    expected = np.zeros((6, 8), dtype=bool)
    expected[1:4, 2:5] = True
    from pycocotools import mask as coco_mask

    packed = coco_mask.encode(np.asfortranarray(expected.astype(np.uint8)))
    rle = {"size": [6, 8], "counts": counts}
    masks = decode_masks([polygon, rle, {"size": [6, 8], "counts": packed["counts"].decode()}], 6, 8)
    for mask in masks:
        np.testing.assert_array_equal(mask, expected)


def test_missing_segmentation_is_named_only_when_masks_are_asked_for(payload, write_json):
    path = write_json(payload)
    assert CocoDataset.load(path).images[0].segmentations == ()
    with pytest.raises(DataError, match="annotation 1 has no usable segmentation"):
        CocoDataset.load(path, with_masks=True)


def test_lvis_file_names_come_from_the_url(payload, write_json):
    for record in payload["images"]:
        record["coco_url"] = f"http://images.cocodataset.org/val2017/{record.pop('file_name')}"
        record["neg_category_ids"] = []
        record["not_exhaustive_category_ids"] = []
    path = write_json(payload)
    assert CocoDataset.load(path, federated=True).images[0].file_name == "val2017/a.jpg"
    with pytest.raises(DataError, match=r"image 10 .* LVIS"):
        CocoDataset.load(path)
