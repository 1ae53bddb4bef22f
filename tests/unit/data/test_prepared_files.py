"""The prepare verbs on small files in the exact layout of the public ones."""

import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image

from ovbridge.data import imagenet_files, lvis_files, objects365_files, openimages_files, strict_files
from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.image_reading import read_image
from ovbridge.errors import DataError, OVBridgeError


def _jpeg(width, height):
    buffer = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), 90, np.uint8)).save(buffer, format="JPEG")
    return buffer.getvalue()


# LVIS


@pytest.fixture
def lvis_train(tmp_path):
    """Two images as LVIS v1 writes them (no file_name, a coco_url), one class of each frequency."""
    url = "http://images.cocodataset.org/train2017/{:012d}.jpg"
    image = {"width": 30, "height": 20, "neg_category_ids": [], "not_exhaustive_category_ids": [], "license": 1}
    poly = {"segmentation": [[1, 1, 9, 1, 9, 9]], "area": 32.0}
    content = {
        "images": [{"id": k, "coco_url": url.format(k), **image} for k in (391895, 522418)],
        "annotations": [
            {"id": 1, "image_id": 391895, "category_id": 1, "bbox": [1, 1, 8, 8], **poly},
            {"id": 2, "image_id": 391895, "category_id": 2, "bbox": [1, 1, 8, 8], **poly},
            {"id": 3, "image_id": 522418, "category_id": 3, "bbox": [1, 1, 8, 8], **poly},
            {"id": 4, "image_id": 391895, "category_id": 2, "bbox": [2, 2, 8, 8], **poly},
        ],
        "categories": [
            {"id": k, "name": n, "frequency": f, "synset": f"{n}.n.01", "synonyms": [n], "def": "d", "image_count": 9,
             "instance_count": 9}
            for k, n, f in ((1, "mug", "f"), (2, "kite", "c"), (3, "bob", "r"))
        ],
    }  # fmt: skip
    path = tmp_path / "lvis" / lvis_files.TRAIN_NAME
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    return path


def test_lvis_keeps_images_and_counts_classes(lvis_train, tmp_path):
    counts = lvis_files.write_lvis_ovd(lvis_train.parent, tmp_path / "ovd")
    assert counts["train"] == {
        "images": 2,
        "annotations": 4,
        "kept_annotations": 3,
        "removed_annotations": 1,
        "images_without_box": 1,
        "rare_classes": 1,
    }
    assert counts["known_counts"] == "sample"
    norare = json.loads((tmp_path / "ovd" / "lvis_v1_train_norare.json").read_text())
    assert [i["id"] for i in norare["images"]] == [391895, 522418]
    assert [a["id"] for a in norare["annotations"]] == [1, 2, 4]
    dataset = CocoDataset.load(tmp_path / "ovd" / "lvis_v1_train_norare.json", federated=True)
    assert dataset.vocabulary.roles == ("base", "base", "novel")
    assert dataset.images[0].file_name == "train2017/000000391895.jpg"
    statistics = json.loads((tmp_path / "ovd" / "lvis_v1_train_norare_cat_info.json").read_text())
    assert [(c["image_count"], c["instance_count"]) for c in statistics] == [(1, 1), (1, 2), (0, 0)]
    assert "def" not in statistics[0]


def test_lvis_refuses_other_counts_unless_told(lvis_train, tmp_path, monkeypatch):
    monkeypatch.setitem(lvis_files.KNOWN_TRAIN, "images", 2)
    with pytest.raises(DataError, match=r"gives 4 annotations, the public files 1,270,141.*--allow-count-mismatch"):
        lvis_files.write_lvis_ovd(lvis_train, tmp_path / "ovd")
    assert not (tmp_path / "ovd").exists()
    assert lvis_files.write_lvis_ovd(lvis_train, tmp_path / "ovd", allow_count_mismatch=True)["known_counts"] == (
        "mismatch"
    )


def test_lvis_wants_lvis(payload, write_json, tmp_path):
    with pytest.raises(DataError, match="not an LVIS file"):
        lvis_files.write_lvis_ovd(write_json(payload), tmp_path / "ovd")


# ImageNet


@pytest.fixture
def imagenet(tmp_path):
    """airplane as an archive (with a broken member), air conditioner as a folder, and a synset LVIS does not have."""
    root = tmp_path / "imagenet"
    folder = root / "n02686379"
    folder.mkdir(parents=True)
    (folder / "n02686379_7.JPEG").write_bytes(_jpeg(12, 10))
    with tarfile.open(root / "n02691156.tar", "w") as tar:
        for name, content in (("n02691156_2.JPEG", _jpeg(30, 20)), ("n02691156_9.JPEG", b"no picture")):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (root / "n00015388").mkdir()
    (root / "n00015388" / "n00015388_1.JPEG").write_bytes(_jpeg(8, 8))
    return root


def test_imagenet_labels_folders_and_archives_without_unpacking(imagenet, tmp_path):
    before = sorted(p.name for p in imagenet.rglob("*"))
    counts = imagenet_files.write_imagenet_labels(imagenet, tmp_path / "out")
    assert (counts["synsets"], counts["images"], counts["left_out_images"], counts["other_synsets"]) == (2, 2, 1, 1)
    assert list(counts["left_out"]) == ["n02691156.tar/n02691156_9.JPEG"]
    assert counts["known_counts"] == "sample"
    assert sorted(p.name for p in imagenet.rglob("*")) == before
    tagged = load_tagged_images(tmp_path / "out" / "imagenet_lvis.json")
    assert [tagged.vocabulary.names[i.class_ids[0]] for i in tagged.images] == ["air_conditioner", "airplane"]
    assert [(i.width, i.height) for i in tagged.images] == [(12, 10), (30, 20)]
    pixels = read_image(imagenet / tagged.images[1].file_name, expected_hw=(20, 30))
    assert pixels.shape == (20, 30, 3)
    with pytest.raises(DataError, match="JPEG does not exist"):
        read_image(imagenet / "n02691156.tar" / "other.JPEG")


def test_the_997_synsets_are_lvis_classes(shared_data):
    shipped = imagenet_files.lvis_categories()
    assert list(shipped) == (shared_data / "metadata" / "imagenet_lvis_wnid.txt").read_text().split()
    official = {c["id"]: c for c in json.loads((shared_data / "metadata" / "lvis_v1_train_cat_info.json").read_text())}
    for category in shipped.values():
        assert official[category["id"]]["synset"] == category["synset"]
        assert official[category["id"]]["name"] == category["name"]
    assert len({c["id"] for c in shipped.values()}) == 997


def test_imagenet_missing_synsets_are_refused(imagenet, tmp_path, monkeypatch):
    monkeypatch.setattr(imagenet_files, "KNOWN_SYNSETS", 3)
    with pytest.raises(DataError, match="gives 2 synsets, the public files 3"):
        imagenet_files.write_imagenet_labels(imagenet, tmp_path / "out")
    with pytest.raises(DataError, match="of a known synset"):
        imagenet_files.write_imagenet_labels(tmp_path, tmp_path / "out")


def test_imagenet_by_words_takes_every_synset(imagenet, tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("n00015388\tanimal, beast\nn02686379\tair conditioner\nn02691156\tairplane, plane\nn1\tanimal\n")
    counts = imagenet_files.write_imagenet_labels(imagenet, tmp_path / "out", words=words)
    assert (counts["synsets"], counts["images"]) == (3, 3)
    tagged = load_tagged_images(tmp_path / "out" / "imagenet_words.json")
    assert tagged.vocabulary.names == ("animal", "air conditioner", "airplane")


def test_imagenet_words_without_a_name_are_refused(imagenet, tmp_path):
    (tmp_path / "words.txt").write_text("n02691156\t,\n")
    with pytest.raises(DataError, match=r"words\.txt: line 'n02691156.*,' is not"):
        imagenet_files.write_imagenet_labels(imagenet, tmp_path / "out", words=tmp_path / "words.txt")


# OpenImages

TREE = {
    "LabelName": "/m/0bl9f",
    "Subcategory": [
        {
            "LabelName": "/m/animal",
            "Subcategory": [
                {"LabelName": "/m/bird", "Subcategory": [{"LabelName": "/m/owl"}]},
                {"LabelName": "/m/cat"},
            ],
        },
        {"LabelName": "/m/toy", "Subcategory": [{"LabelName": "/m/owl"}], "Part": [{"LabelName": "/m/cat"}]},
    ],
}


@pytest.fixture
def challenge(tmp_path):
    folder = tmp_path / "challenge2019"
    folder.mkdir()
    rows = ["/m/animal,Animal", "/m/bird,Bird", "/m/owl,Owl", "/m/cat,Cat", "/m/toy,Toy"]
    (folder / openimages_files.CLASSES_FILE).write_text("\n".join(rows) + "\n")
    (folder / openimages_files.HIERARCHY_FILE).write_text(json.dumps(TREE))
    (folder / "challenge-2019-validation-detection-bbox.csv").write_text(
        "ImageID,LabelName,XMin,XMax,YMin,YMax,IsGroupOf\naa11,/m/owl,0.1,0.5,0.25,0.75,0\nbb22,/m/cat,0,1,0,1,1\n"
    )
    (folder / "challenge-2019-validation-detection-human-imagelabels.csv").write_text(
        "ImageID,LabelName,Confidence\naa11,/m/cat,0\naa11,/m/owl,1\nbb22,/m/bird,0\ncc33,/m/animal,0\n"
    )
    images = tmp_path / "images" / "validation"
    images.mkdir(parents=True)
    for name in ("aa11", "bb22", "cc33"):
        (images / f"{name}.jpg").write_bytes(_jpeg(100, 40))
    return folder


def test_openimages_expands_boxes_up_and_absence_down(challenge, tmp_path):
    counts = openimages_files.write_openimages(challenge, tmp_path / "out", images=tmp_path / "images")
    # The owl is also a bird, an animal and a toy; the cat (a group) also an animal.
    assert (counts["images"], counts["boxes"], counts["expanded_boxes"], counts["group_boxes"]) == (3, 2, 6, 2)
    content = json.loads((tmp_path / "out" / "oid_challenge_2019_validation_expanded.json").read_text())
    assert [c["name"] for c in content["categories"]] == ["Animal", "Bird", "Owl", "Cat", "Toy"]
    assert [(a["image_id"], a["category_id"]) for a in content["annotations"]] == [
        (1, 1), (1, 2), (1, 3), (1, 5), (2, 1), (2, 4),
    ]  # fmt: skip
    assert content["annotations"][0]["bbox"] == pytest.approx([10, 10, 40, 20])
    by_name = {i["file_name"]: i for i in content["images"]}
    assert by_name["aa11.jpg"]["pos_category_ids"] == [1, 2, 3, 5]
    assert by_name["aa11.jpg"]["neg_category_ids"] == [4]
    # No bird: no owl either. No animal: none of the four, but the owl toy's other parent stays open.
    assert by_name["bb22.jpg"]["neg_category_ids"] == [2, 3]
    assert by_name["cc33.jpg"]["neg_category_ids"] == [1, 2, 3, 4]


def test_openimages_sizes_by_table_and_faults(challenge, tmp_path):
    table = tmp_path / "sizes.csv"
    table.write_text("ImageID,Width,Height\naa11,100,40\nbb22,10,10\ncc33,10,10\n")
    counts = openimages_files.write_openimages(challenge, tmp_path / "out", image_sizes=table)
    assert counts["expanded_boxes"] == 6
    with pytest.raises(DataError, match="sizes of the images are needed"):
        openimages_files.write_openimages(challenge, tmp_path / "x")
    table.write_text("ImageID,Width,Height\naa11,100,40\n")
    with pytest.raises(DataError, match="image bb22 has no size"):
        openimages_files.write_openimages(challenge, tmp_path / "x", image_sizes=table)
    boxes = challenge / "challenge-2019-validation-detection-bbox.csv"
    boxes.write_text(boxes.read_text() + "bb22,/m/dog,0,1,0,1,0\n")
    with pytest.raises(DataError, match="line 4 has label '/m/dog'"):
        openimages_files.write_openimages(challenge, tmp_path / "x", image_sizes=table)


BOXES_HEAD = "ImageID,Source,LabelName,XMin,XMax,YMin,YMax,IsInside,IsGroupOf"


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("sizes.csv", "ImageID,Width,Height\naa11,0,40\n", "image aa11 has '0' where a positive number"),
        ("sizes.csv", "ImageID,Width,Height\naa11,inf,40\n", "image aa11 has 'inf' where a number"),
        ("sizes.csv", "ImageID,Width,License,Height\naa11,9,x\n", "line 2 has 3 columns, the first line 4"),
        ("*-bbox.csv", f"{BOXES_HEAD}\naa11,x,/m/owl,0,1,0,1,0\n", "line 2 has 8 columns, the first line 9"),
        ("*-bbox.csv", f"{BOXES_HEAD}\naa11,x,/m/owl,0,1,0,1,0,yes\n", "image aa11 has IsGroupOf 'yes'"),
        ("*-imagelabels.csv", "ImageID,LabelName,Confidence\naa11,/m/owl,nan\n", "image aa11 has 'nan'"),
        (openimages_files.CLASSES_FILE, "/m/owl,Owl\n/m/owl,Eagle\n", "lists the label /m/owl twice"),
        (openimages_files.HIERARCHY_FILE, '{"LabelName": "/m/owl", "Subcategory": null}', "lists in Subcategory"),
        (openimages_files.HIERARCHY_FILE, '{"LabelName": ["/m/owl"]}', "objects with LabelName"),
    ],
)
def test_openimages_faults_are_named_before_anything_is_written(file, content, message, challenge, tmp_path):
    table = challenge / "sizes.csv"
    table.write_text("ImageID,Width,Height\naa11,100,40\nbb22,10,10\ncc33,10,10\n")
    next(challenge.glob(file)).write_text(content)
    with pytest.raises(DataError, match=message):
        openimages_files.write_openimages(challenge, tmp_path / "out", image_sizes=table)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("flag", "groups"), [("1", 1), ("1.0", 1), ("True", 1), ("-1", 0), ("0.0", 0)])
def test_openimages_group_flags_and_byte_order_mark(flag, groups, challenge, tmp_path):
    boxes = challenge / "challenge-2019-validation-detection-bbox.csv"
    boxes.write_text(f"{BOXES_HEAD}\nbb22,x,/m/toy,0,1,0,1,0,{flag}\n", encoding="utf-8-sig")
    counts = openimages_files.write_openimages(challenge, tmp_path / "out", images=tmp_path / "images")
    assert counts["group_boxes"] == groups


# Objects365


def test_objects365_names_and_paths(shared_data, tmp_path):
    names = shared_data / "metadata" / "Objects365_names_fix.csv"
    published = {38: "Moniter/TV", 53: "Bakset", 1: "Person"}
    content = {
        "images": [
            {
                "id": 5,
                "file_name": "images/v1/patch8/objects365_v1_00420917.jpg",
                "width": 9,
                "height": 9,
                "license": 5,
            },
            {"id": 6, "file_name": "images/v2/patch16/objects365_v2_00908726.jpg", "width": 9, "height": 9},
        ],
        "annotations": [
            {"id": 1, "image_id": 5, "category_id": 53, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0, "isfake": 0},
            {"id": 2, "image_id": 6, "category_id": 1, "bbox": [0, 0, 4, 4], "area": 16, "iscrowd": 0, "isfake": 0},
        ],
        "categories": [{"id": k, "name": n} for k, n in published.items()],
    }
    source = tmp_path / "zhiyuan_objv2_val.json"
    source.write_text(json.dumps(content))
    del content["images"][1]["file_name"]
    content["images"][1]["coco_url"] = "http://x.org/v2/patch16/objects365_v2_00908726.jpg"
    source.write_text(json.dumps(content))
    counts = objects365_files.write_objects365(source, names, tmp_path / "out")
    assert (counts["renamed"], counts["images"], counts["known_counts"]) == (2, 2, "sample")
    dataset = CocoDataset.load(tmp_path / "out" / "zhiyuan_objv2_val_names_fixed.json")
    assert dataset.vocabulary.names == ("Person", "Monitor/TV", "Basket")
    assert [i.file_name for i in dataset.images] == [
        "patch8/objects365_v1_00420917.jpg",
        "patch16/objects365_v2_00908726.jpg",
    ]
    images = tmp_path / "val"
    (images / "patch8").mkdir(parents=True)
    (images / "patch8" / "objects365_v1_00420917.jpg").write_bytes(_jpeg(9, 9))
    counts = objects365_files.write_objects365(source, names, tmp_path / "there", images=images)
    assert (counts["absent_images"], counts["annotations"]) == (1, 1)
    content["categories"][0]["name"] = "Horse"
    source.write_text(json.dumps(content))
    with pytest.raises(DataError, match="calls category 38 'Moniter/TV', the annotation file 'Horse'"):
        objects365_files.write_objects365(source, names, tmp_path / "x")


# Strict


def test_strict_draws_around_the_novel_names(payload, write_json, tmp_path):
    payload["annotations"] = [a for a in payload["annotations"] if a["category_id"] == 3]
    train = write_json(payload)
    names = ["mug", "box kite", "Kites", "tree", "rose", "lily"]
    labels = {
        "images": [
            {"id": k + 1, "file_name": f"{k}.jpg", "width": 5, "height": 5, "pos_category_ids": [k + 1]}
            for k in range(6)
        ],
        "annotations": [],
        "categories": [{"id": k + 1, "name": n} for k, n in enumerate(names)],
    }
    source = tmp_path / "labels.json"
    source.write_text(json.dumps(labels))
    counts = strict_files.write_strict(train, source, tmp_path / "all")
    assert (counts["avoided"], counts["drawn_classes"], counts["wanted_classes"]) == (["Kites", "box kite"], 4, 10)
    boxes = CocoDataset.load(tmp_path / "all" / strict_files.TRAIN_FILE)
    assert set(boxes.vocabulary.names) == {"mug", "tree", "rose", "lily"}
    tagged = load_tagged_images(tmp_path / "all" / strict_files.LABELS_FILE, vocabulary=boxes.vocabulary)
    assert sorted(boxes.vocabulary.names[i.class_ids[0]] for i in tagged.images) == ["lily", "mug", "rose", "tree"]
    first = strict_files.write_strict(train, source, tmp_path / "a", classes=2, seed=1)
    again = strict_files.write_strict(train, source, tmp_path / "b", classes=2, seed=1)
    assert first["images"] == again["images"] == 2
    a, b = ((tmp_path / d / strict_files.LABELS_FILE).read_text() for d in "ab")
    assert a == b
    payload["annotations"].append({"id": 99, "image_id": 7, "category_id": 55, "bbox": [1, 1, 2, 2]})
    with pytest.raises(DataError, match="annotation 99 is of category 55, which is not base"):
        strict_files.write_strict(write_json(payload), source, tmp_path / "x")


STRICT_LABELS = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 5, "height": 5, "pos_category_ids": [1]}],
    "annotations": [],
    "categories": [{"id": 1, "name": "tree"}, {"id": 2, "name": "rose"}, {"id": 3, "name": "Ｋite"}],
}


def test_strict_boxes_keep_no_word_of_another_class(payload, write_json, tmp_path):
    payload["annotations"] = payload["annotations"][:1]
    words = {"captions": ["a kite"], "pos_category_ids": [55], "neg_category_ids": [55, 3]}
    for image in payload["images"]:
        image["neg_category_ids"] = []
    payload["images"][0] |= words
    counts = strict_files.write_strict(write_json(payload), write_json(STRICT_LABELS, "labels.json"), tmp_path / "out")
    assert counts["avoided"] == ["Ｋite"]
    kept = json.loads((tmp_path / "out" / strict_files.TRAIN_FILE).read_text())["images"][0]
    assert words.keys() & kept.keys() == {"neg_category_ids"}
    assert kept["neg_category_ids"] == [3]


@pytest.mark.parametrize(
    ("labels", "roles", "options", "message"),
    [
        ({}, True, {"classes": 0}, "--classes must be at least 1"),
        ({}, True, {"classes": -1}, "--classes must be at least 1"),
        ({}, True, {"seed": -1}, "--seed must not be negative"),
        ({}, False, {}, "no class is novel, so there is nothing to avoid"),
        ({"images": [{k: v for k, v in STRICT_LABELS["images"][0].items() if k != "pos_category_ids"}]}, True, {},
         "no image carries pos_category_ids"),
        ({"categories": STRICT_LABELS["categories"][1:]}, True, {}, "image 1 has label 1"),
        ({"images": [{**STRICT_LABELS["images"][0], "pos_category_ids": [3]}]}, True, {}, "no image is labelled with"),
    ],
)  # fmt: skip
def test_strict_refuses_what_would_leave_no_strict_set(labels, roles, options, message, payload, write_json, tmp_path):
    payload["annotations"] = payload["annotations"][:1]
    for category in () if roles else payload["categories"]:
        del category["role"]
    source = write_json({**STRICT_LABELS, **labels}, "labels.json")
    with pytest.raises(OVBridgeError, match=message):
        strict_files.write_strict(write_json(payload), source, tmp_path / "out", **options)
    assert not (tmp_path / "out").exists()
