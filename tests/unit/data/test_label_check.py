"""Labels, captions and synonyms that cannot be read are named by whatever reads them, never passed over."""

import json

import pytest

from ovbridge.audit.run import audit
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.inspection import inspect_annotations
from ovbridge.data.label_check import label_faults
from ovbridge.errors import DataError

IMAGE = {"id": 4, "file_name": "a.jpg", "width": 9, "height": 9}
DOG = {"id": 1, "name": "dog", "role": "novel"}
CAPTION = {"id": 7, "image_id": 4, "caption": "a dog"}


def _file(image=(), caption=(), category=(), **lists):
    content = {
        "images": [{**IMAGE, **dict(image)}],
        "annotations": [{**CAPTION, **dict(caption)}],
        "categories": [{**DOG, **dict(category)}],
    }
    return content | lists


BROKEN = {
    "captions in one text": (_file(image={"captions": "a dog"}), "image 4 has captions 'a dog'"),
    "captions null": (_file(image={"captions": None}), "image 4 has captions None"),
    "captions as objects": (_file(image={"captions": [{"raw": "dog"}]}), "image 4 has captions [{'raw': 'dog'}]"),
    "caption null": (_file(caption={"caption": None}), "annotation 7 has caption None"),
    "caption of a list": (_file(caption={"image_id": [4]}), "annotation 7 has image_id [4]"),
    "annotation of a number": (_file(annotations=[5]), "annotation number 0 is 5"),
    "annotations null": (_file(image={"captions": ["dog"]}, annotations=None), "no list 'annotations'"),
    "categories null": (_file(categories=None), "no list 'categories'"),
    "labels null": (_file(image={"pos_category_ids": None}), "image 4 has pos_category_ids None"),
    "label of a name": (_file(image={"pos_category_ids": ["dog"]}), "image 4 has label 'dog'"),
    "label of a list": (_file(image={"pos_category_ids": [[1]]}), "image 4 has label [1]"),
    "label of no category": (_file(image={"pos_category_ids": [1, 99]}), "image 4 has label 99"),
    "labels without categories": (_file(image={"pos_category_ids": [1]}, categories=[]), "there are no 'categories'"),
    "synonyms in one text": (_file(category={"synonyms": "pup"}), "category 1 has synonyms 'pup'"),
    "synonyms null": (_file(category={"synonyms": None}), "category 1 has synonyms None"),
    "synonyms of numbers": (_file(category={"synonyms": [5]}), "category 1 has synonyms [5]"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_label_file_is_named_by_doctor_tagger_and_audit(fault, tmp_path):
    content, message = BROKEN[fault]
    path, target = tmp_path / "labels.json", tmp_path / "instances_val2017.json"
    path.write_text(json.dumps(content))
    target.write_text(json.dumps({"categories": [DOG]}))
    readers = [load_tagged_images, lambda p: audit(p, target=target)]
    if fault != "annotation of a number":  # by its keys such a file is none of labels
        assert [f for f in inspect_annotations(path).faults if message in f]
    for read in readers:
        with pytest.raises(DataError) as error:
            read(path)
        assert f"{path}: " in str(error.value)
        assert message in str(error.value)


def test_a_good_label_file_has_no_fault():
    content = _file(image={"captions": [], "pos_category_ids": [1]}, category={"synonyms": ["pup"]})
    assert list(label_faults(content)) == []


def test_images_that_are_no_list_are_named(tmp_path):
    (tmp_path / "x.json").write_text('{"images": 5}')
    assert "no list 'images'" in inspect_annotations(tmp_path / "x.json").faults[0]


@pytest.mark.parametrize(
    ("beside", "message"), [([1], "top level is a list"), ({"categories": [{"id": 1}]}, "category 1 has no 'name'")]
)
def test_a_broken_instances_file_beside_captions_is_named(beside, message, tmp_path):
    (tmp_path / "captions_x.json").write_text(json.dumps({"images": [IMAGE], "annotations": [CAPTION]}))
    (tmp_path / "instances_x.json").write_text(json.dumps(beside))
    with pytest.raises(DataError, match=rf"instances_x\.json: .*{message}"):
        load_tagged_images(tmp_path / "captions_x.json")
