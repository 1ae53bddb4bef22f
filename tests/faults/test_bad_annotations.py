"""Broken annotation files, results and images: each is named with the offending id, before anything else happens."""

from __future__ import annotations

import copy
import json
import math
import struct
import zlib

import pytest
from PIL import Image

from ovbridge.data.annotation_check import faults
from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_reading import read_image
from ovbridge.data.inspection import inspect_annotations, inspect_dataset, inspect_images
from ovbridge.errors import DataError
from ovbridge.evaluation import evaluate
from ovbridge.evaluation.results_file import require_free, write_results
from ovbridge.vocabulary.coco_names import COCO_OVD

GOOD = {
    "images": [
        {"id": 11, "file_name": "a.jpg", "width": 40, "height": 30},
        {"id": 22, "file_name": "b.jpg", "width": 40, "height": 30},
    ],
    "categories": [{"id": 3, "name": "mug"}, {"id": 90, "name": "kite"}],
    "annotations": [
        {"id": 101, "image_id": 11, "category_id": 3, "bbox": [1, 2, 10, 20], "area": 200, "iscrowd": 0},
        {"id": 202, "image_id": 22, "category_id": 90, "bbox": [5, 5, 10, 10], "area": 100, "iscrowd": 0},
    ],
}


def _change(path, value):
    """A copy of GOOD with one value replaced; a value of KeyError removes the key."""
    payload = copy.deepcopy(GOOD)
    target = payload
    for key in path[:-1]:
        target = target[key]
    if value is KeyError:
        del target[path[-1]]
    else:
        target[path[-1]] = value
    return payload


BOX = ("annotations", 1, "bbox")
BROKEN = [
    ("not an object", [GOOD], "top level is a list"),
    ("no images", _change(("images",), KeyError), "no list 'images'"),
    ("no annotations", _change(("annotations",), KeyError), "no list 'annotations'"),
    ("no categories", _change(("categories",), KeyError), "no list 'categories'"),
    ("empty categories", _change(("categories",), []), "'categories' is empty"),
    ("images is an object", _change(("images",), {}), "no list 'images'"),
    ("image is text", _change(("images", 1), "b.jpg"), "image number 1"),
    ("image without id", _change(("images", 1, "id"), KeyError), "image number 1"),
    ("image id is text", _change(("images", 1, "id"), "22"), "image number 1"),
    ("duplicate image id", _change(("images", 1, "id"), 11), "image id 11 appears twice"),
    ("image without name", _change(("images", 1, "file_name"), KeyError), "image 22 has no 'file_name'"),
    ("image without width", _change(("images", 1, "width"), KeyError), "image 22 has width None"),
    ("image of no height", _change(("images", 0, "height"), 0), "image 11 has height 0"),
    ("image of negative width", _change(("images", 0, "width"), -40), "image 11 has width -40"),
    ("category without name", _change(("categories", 1, "name"), KeyError), "category 90 has no 'name'"),
    ("category without id", _change(("categories", 1, "id"), KeyError), "category number 1"),
    ("duplicate category id", _change(("categories", 1, "id"), 3), "category id 3 appears twice"),
    ("duplicate category name", _change(("categories", 1, "name"), "mug"), "categories 3 and 90 are both named 'mug'"),
    ("annotation without id", _change(("annotations", 1, "id"), KeyError), "annotation number 1"),
    ("duplicate annotation id", _change(("annotations", 1, "id"), 101), "annotation id 101 appears twice"),
    ("unknown image", _change(("annotations", 1, "image_id"), 33), "annotation 202 belongs to image 33"),
    ("annotation without image", _change(("annotations", 1, "image_id"), KeyError), "annotation 202 belongs to image"),
    ("unknown category", _change(("annotations", 1, "category_id"), 4), "annotation 202 has category 4"),
    ("no bbox", _change(BOX, KeyError), "annotation 202 has bbox None"),
    ("bbox of three", _change(BOX, [1, 2, 3]), "annotation 202 has bbox [1, 2, 3]"),
    ("bbox of text", _change(BOX, ["1", "2", "3", "4"]), "annotation 202 has bbox"),
    ("bbox of a truth value", _change(BOX, [True, 2, 3, 4]), "202 has bbox [True, 2, 3, 4]: four numbers"),
    ("NaN", _change(BOX, [1, math.nan, 3, 4]), "annotation 202 has bbox [1, nan, 3, 4]"),
    ("infinity", _change(BOX, [1, 2, math.inf, 4]), "annotation 202 has bbox [1, 2, inf, 4]"),
    ("negative width", _change(BOX, [20, 5, -10, 10]), "annotation 202 has bbox [20, 5, -10, 10]"),
    ("wholly outside", _change(BOX, [40, 5, 10, 10]), "annotation 202 has bbox [40, 5, 10, 10], wholly outside"),
    ("huge number", _change(BOX, [1, 2, 10**400, 4]), "annotation 202 has bbox [1, 2, 1000"),
    ("crowd is text", _change(("annotations", 1, "iscrowd"), "0"), "annotation 202 has iscrowd '0': 0 or 1"),
    ("group is text", _change(("annotations", 1, "is_group_of"), "0"), "annotation 202 has is_group_of '0': 0 or 1"),
    ("negative id", _change(("annotations", 1, "id"), -1), "annotation number 1 has no 'id' that is a whole number"),
    ("half a pixel", _change(("images", 1, "width"), 40.5), "image 22 has width 40.5: a positive whole number"),
    ("area is NaN", _change(("annotations", 1, "area"), math.nan), "annotation 202 has area nan"),
    ("LVIS given as COCO", _change(("images", 1, "neg_category_ids"), [3]), "image 22 carries neg_category_ids"),
    (
        "wrong class order",
        _change(("categories",), [{"id": k, "name": n} for k, n in enumerate(sorted(COCO_OVD.names), start=3)])
        | {"annotations": []},
        "category 3 is 'airplane', where COCO has 'person'",
    ),
    (
        "unknown role",
        _change(("categories",), [{"id": i, "name": str(i), "role": "seen"} for i in (3, 90)]),
        "role 'seen'",
    ),
]


@pytest.fixture
def write(tmp_path):
    def to_file(content, name="broken.json"):
        path = tmp_path / name
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        return path

    return to_file


def test_the_unbroken_file_passes(write):
    assert list(faults(GOOD)) == []
    assert len(CocoDataset.load(write(GOOD))) == 2


@pytest.mark.parametrize(("payload", "named"), [case[1:] for case in BROKEN], ids=[case[0] for case in BROKEN])
def test_broken_annotations_are_named_before_training_and_scoring(write, payload, named):
    path = write(payload)
    for use in (lambda: CocoDataset.load(path), lambda: evaluate(path, [], "coco")):
        with pytest.raises(DataError) as caught:
            use()
        message = str(caught.value)
        assert named in message
        assert message.startswith(str(path))
        assert "\n" not in message
    if "neg_category_ids" not in named:  # a valid file of another kind
        assert any(named in fault for fault in inspect_annotations(path).faults)


def test_every_fault_of_an_annotation_is_named():
    broken = _change(("annotations", 1), {"id": 202, "image_id": 33, "category_id": 4, "bbox": [], "iscrowd": "x"})
    assert [fault.split()[2] for fault in faults(broken)] == ["belongs", "has", "has", "has"]


@pytest.mark.parametrize(
    ("image", "named"),
    [
        ({"neg_category_ids": []}, "image 22 has no not_exhaustive_category_ids, other images have"),
        ({"not_exhaustive_category_ids": []}, "image 22 has no neg_category_ids, other images have"),
        (
            {"neg_category_ids": None, "not_exhaustive_category_ids": []},
            "image 22 has neg_category_ids that is no list",
        ),
        (
            {"neg_category_ids": ["3"], "not_exhaustive_category_ids": []},
            "image 22 has neg_category_ids that is no list",
        ),
    ],
)
def test_an_lvis_file_says_of_every_image_what_was_looked_for(write, image, named):
    payload = copy.deepcopy(GOOD)
    payload["images"][0] |= {"neg_category_ids": [], "not_exhaustive_category_ids": [90]}
    payload["images"][1] |= image
    payload["categories"] = [{**c, "frequency": "f"} for c in payload["categories"]]
    path = write(payload)
    for use in (lambda: CocoDataset.load(path, federated=None), lambda: evaluate(path, [], "lvis")):
        with pytest.raises(DataError, match=named):
            use()
    assert any(named in fault for fault in inspect_annotations(path).faults)


@pytest.mark.parametrize(
    ("payload", "noted"),
    [
        (_change(("annotations", 1, "segmentation"), [[1, 2]]), "1 annotations have no usable mask"),
        (_change(("annotations", 1, "segmentation"), {"size": [40, 30], "counts": [1200]}), "no usable mask"),
        (_change(("categories", 1, "name"), "Mug "), "categories 'mug' and 'Mug ' differ in case or spaces alone"),
        (
            _change(("images",), [{**i, "neg_category_ids": [3, 44]} for i in GOOD["images"]]),
            "1 category ids that have no category (ids 44)",
        ),
    ],
)
def test_what_only_some_uses_stumble_over_is_noted(write, payload, noted):
    found = inspect_annotations(write(payload))
    assert found.faults == []
    assert any(noted in note for note in found.notes)


@pytest.mark.parametrize("content", ["", "{", "\x00\x01", "[1, 2", "[" * 100_000])
def test_what_is_not_json(write, content):
    with pytest.raises(DataError, match=r"broken\.json is (not JSON|nested too deeply)"):
        CocoDataset.load(write(content))


def test_what_is_not_there(tmp_path):
    with pytest.raises(DataError, match=r"none\.json does not exist"):
        CocoDataset.load(tmp_path / "none.json")
    with pytest.raises(DataError, match="cannot be read"):
        CocoDataset.load(tmp_path)


def test_a_captions_file_is_recognised(write):
    with pytest.raises(DataError, match="captions file"):
        CocoDataset.load(write({**GOOD, "categories": [], "annotations": [{"id": 1, "image_id": 11, "caption": "a"}]}))


def test_zero_area_boxes_are_named_but_do_not_stop_real_files(write, capsys):
    path = write(_change(BOX, [5, 5, 0, 10]))
    CocoDataset.load(path)
    assert "202" in capsys.readouterr().err
    assert any("202" in note for note in inspect_annotations(path).notes)
    evaluate(path, [], "coco")


def test_boxes_that_reach_outside_are_clipped_and_noted(write):
    path = write(_change(BOX, [30, -5, 30, 10]))
    assert CocoDataset.load(path).images[1].boxes_xyxy.tolist() == [[30, 0, 40, 5]]
    assert any("202" in note for note in inspect_annotations(path).notes)


RESULT = {"image_id": 11, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.5}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"image_id": 12}, "detection number 1 is of image 12"),
        ({"category_id": 1}, "detection number 1 has category 1"),
        ({"score": math.nan}, "detection number 1 (image 11) has score nan"),
        ({"score": 10**400}, "detection number 1 (image 11) has score 1000"),
        ({"image_id": True}, "detection number 1 has image_id True"),
        ({"score": None}, "detection number 1 (image 11) has score None"),
        ({"bbox": [1, 2, 3]}, "detection number 1 (image 11) has bbox [1, 2, 3]"),
        ({"bbox": [1, 2, math.inf, 3]}, "detection number 1 (image 11) has bbox"),
        ({"bbox": [9, 9, -1, 3]}, "negative width or height"),
    ],
)
def test_broken_results_are_named(write, change, named):
    path = write([RESULT, RESULT | change], "results.json")
    with pytest.raises(DataError) as caught:
        evaluate(GOOD, path, "coco")
    assert named in str(caught.value)


def test_results_of_another_shape(write):
    with pytest.raises(DataError, match="must hold a list"):
        evaluate(GOOD, write({"results": []}, "results.json"), "coco")
    with pytest.raises(DataError, match="detection number 0 has no 'bbox'"):
        evaluate(GOOD, [{"image_id": 11, "category_id": 3, "score": 1.0}], "coco")
    with pytest.raises(DataError, match="detection number 0 is a list"):
        evaluate(GOOD, [[11, 3]], "coco")


def test_results_are_not_written_over_something_else(tmp_path):
    record = {"protocol": "coco", "dataset": "val", "checkpoint": "a"}
    path = tmp_path / "deep" / "results.json"
    require_free(path, record)
    write_results(path, record)
    require_free(path, record)
    for other in ({**record, "checkpoint": "b"}, {**record, "protocol": "ov-coco"}, {**record, "predictions": "b"}):
        with pytest.raises(DataError, match="exists and holds something else"):
            require_free(path, other)
    path.write_text("notes")
    with pytest.raises(DataError, match="exists and holds something else"):
        require_free(path, record)


@pytest.fixture
def photo(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.effect_noise((64, 48), 50).convert("RGB").save(path)
    return path


@pytest.mark.parametrize("keep", [0, 2, 100, -300])
def test_truncated_images_are_named(photo, keep):
    photo.write_bytes(photo.read_bytes()[:keep])
    with pytest.raises(DataError, match=r"photo\.jpg"):
        read_image(photo)


@pytest.mark.parametrize("width", [11_000, 60_000])
def test_an_image_bomb_is_refused_before_it_is_decoded(tmp_path, width):
    path = tmp_path / "bomb.png"
    header = b"IHDR" + struct.pack(">IIBBBBB", width, width, 8, 2, 0, 0, 0)
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header)))
    with pytest.raises(DataError, match=r"bomb\.png"):
        read_image(path)


def test_doctor_names_missing_broken_and_misfit_images(tmp_path, photo):
    folder = tmp_path / "train2017"
    folder.mkdir()
    Image.new("RGB", (40, 31)).save(folder / "a.jpg")
    annotations = tmp_path / "annotations"
    annotations.mkdir()
    (annotations / "instances_train2017.json").write_text(json.dumps(GOOD))
    found = inspect_dataset(tmp_path).faults
    assert len(found) == 2
    assert "a.jpg is 40x31" in found[0]
    assert "b.jpg does not exist" in found[1]
    photo.write_bytes(b"no picture")
    faults_of_images = inspect_images([photo, folder / "a.jpg"]).faults
    assert len(faults_of_images) == 1
    assert "photo.jpg" in faults_of_images[0]


@pytest.fixture
def data_set(tmp_path):
    """GOOD with its two photographs."""
    for folder in ("annotations", "train2017"):
        (tmp_path / folder).mkdir()
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(GOOD))
    for name in ("a.jpg", "b.jpg"):
        Image.effect_noise((40, 30), 50).convert("RGB").save(tmp_path / "train2017" / name)
    return tmp_path


@pytest.mark.parametrize("place", ["train2017", "images/train2017", "images"])
def test_doctor_finds_the_images(data_set, place):
    (data_set / "train").mkdir()
    (data_set / "train2017").rename(data_set / "aside")
    (data_set / place).parent.mkdir(exist_ok=True)
    (data_set / "aside").rename(data_set / place)
    found = inspect_dataset(data_set)
    assert (found.faults, found.notes) == ([], [])
    (data_set / place / "b.jpg").unlink()
    assert len(inspect_dataset(data_set).faults) == 1


def test_doctor_says_that_it_looked_at_no_image(data_set):
    (data_set / "train2017").rename(data_set / "photographs")
    found = inspect_dataset(data_set)
    assert found.faults == []
    assert "instances_train2017.json: no folder has a part of its name" in found.notes[0]


def test_doctor_decodes_the_images_of_a_data_set(data_set):
    captions = {"images": GOOD["images"], "annotations": [{"id": 1, "image_id": 22, "caption": "a kite"}]}
    (data_set / "annotations" / "captions_train2017.json").write_text(json.dumps(captions))
    Image.new("RGB", (30, 40)).save(data_set / "train2017" / "a.jpg")
    cut = data_set / "train2017" / "b.jpg"
    cut.write_bytes(cut.read_bytes()[:-300])
    found = inspect_dataset(data_set).faults
    assert len(found) == 2, "an image of two files is named once"
    assert "a.jpg is 30x40, its annotation file says 40x30" in found[0]
    assert "b.jpg is damaged" in found[1]
