import json

import pytest

from ovbridge.data import ovd_files
from ovbridge.data.coco import CocoDataset
from ovbridge.errors import DataError


@pytest.fixture
def annotations(payload, write_json):
    write_json(payload, "instances_val2017.json")
    return write_json(payload, "instances_train2017.json").parent


def test_train_keeps_base_and_val_base_and_novel(annotations, tmp_path):
    out = tmp_path / "ovd"
    counts = ovd_files.write_coco_ovd(annotations, out)
    assert counts["known_counts"] == "not full COCO"
    train = json.loads((out / ovd_files.TRAIN_FILE).read_text())
    # Image 7 stays: its crowd of mugs is an annotation of a base class, as in the ovr-cnn filter.
    assert [i["id"] for i in train["images"]] == [10, 7]
    assert [a["id"] for a in train["annotations"]] == [1, 12]
    assert [c["id"] for c in train["categories"]] == [3, 55, 60]
    val = json.loads((out / ovd_files.VAL_FILE).read_text())
    assert [i["id"] for i in val["images"]] == [10, 7]
    assert [a["id"] for a in val["annotations"]] == [1, 5, 9, 12]
    assert counts["train"]["images"] == 2
    assert counts["train"]["dropped_annotations"] == 2
    assert CocoDataset.load(out / ovd_files.TRAIN_FILE).vocabulary.roles == ("base", "novel", "unused")


def test_val_is_optional_and_train_is_not(annotations, tmp_path):
    (annotations / "instances_val2017.json").unlink()
    assert "val" not in ovd_files.write_coco_ovd(annotations, tmp_path / "ovd")
    with pytest.raises(DataError, match=r"instances_train2017\.json does not exist"):
        ovd_files.write_coco_ovd(tmp_path, tmp_path / "other")


def test_a_file_in_which_nothing_is_novel_is_refused(annotations, payload, tmp_path, write_json):
    write_json({**payload, "categories": [{"id": c["id"], "name": c["name"]} for c in payload["categories"]]})
    with pytest.raises(DataError, match=r"instances_train2017\.json: no category is novel.*'role'"):
        ovd_files.write_coco_ovd(annotations, tmp_path / "ovd")
    assert not (tmp_path / "ovd").exists()


def test_again_is_fine_and_foreign_files_stay(annotations, tmp_path):
    out = tmp_path / "ovd"
    ovd_files.write_coco_ovd(annotations, out)
    ovd_files.write_coco_ovd(annotations, out)
    (out / ovd_files.VAL_FILE).write_text("mine")
    with pytest.raises(DataError, match="exists and differs"):
        ovd_files.write_coco_ovd(annotations, out)
    assert (out / ovd_files.VAL_FILE).read_text() == "mine"
    (tmp_path / "x" / ovd_files.TRAIN_FILE).mkdir(parents=True)
    with pytest.raises(DataError, match=r"base\.json cannot be written \(Is a directory\)"):
        ovd_files.write_coco_ovd(annotations, tmp_path / "x")


def test_full_coco_with_other_counts_is_refused_unless_told(annotations, tmp_path, monkeypatch):
    monkeypatch.setattr(ovd_files, "COCO_TRAIN_IMAGES", 3)
    with pytest.raises(DataError, match="2 images with 2 image-class pairs, OV-COCO has 107761"):
        ovd_files.write_coco_ovd(annotations, tmp_path / "ovd")
    assert not (tmp_path / "ovd").exists()
    counts = ovd_files.write_coco_ovd(annotations, tmp_path / "ovd", allow_count_mismatch=True)
    assert counts["known_counts"] == "mismatch"
    monkeypatch.setattr(ovd_files, "KNOWN_TRAIN_IMAGES", 2)
    monkeypatch.setattr(ovd_files, "KNOWN_TRAIN_IMAGE_CLASS_PAIRS", 2)
    assert ovd_files.write_coco_ovd(annotations, tmp_path / "two")["known_counts"] == "match"


def test_caption_tags_file(payload, write_json, tmp_path):
    texts = ["a mug here", "the kite.", "nothing"]
    captions = [{"id": k, "image_id": 10, "caption": t} for k, t in enumerate(texts)]
    folder = write_json({"images": payload["images"], "annotations": captions}, "captions_train2017.json").parent
    write_json(payload)
    paper = ovd_files.write_caption_tags(folder, tmp_path / "paper")
    assert (paper["images"], paper["dropped_images"], paper["tags"]) == (1, 2, 1)
    words = ovd_files.write_caption_tags(folder, tmp_path / "words", rule="words")
    assert words["per_class"] == {"mug": 1, "kite": 1, "drum": 0}
    record = json.loads((tmp_path / "words" / ovd_files.TAGS_FILE).read_text())["images"][0]
    assert record["pos_category_ids"] == [3, 55]
    assert record["captions"] == texts
