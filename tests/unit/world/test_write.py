from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from PIL import Image
from pycocotools.coco import COCO

from ovbridge.errors import ConfigError
from ovbridge.world.nouns import NOUNS
from ovbridge.world.write import WorldSummary, write_world


def _digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def _write(out: Path, train: int = 6, val: int = 3, seed: int = 4, labels: int = 0, workers: int = 0) -> WorldSummary:
    return write_world(out, train=train, val=val, seed=seed, image_labels_per_class=labels, workers=workers)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "w"
    _write(out, train=20, val=10, labels=1)
    return out


def _json(path: Path) -> dict:
    return json.loads(path.read_text())


def test_same_seed_same_bytes_whatever_the_number_of_processes(world, tmp_path):
    _write(tmp_path / "w", train=20, val=10, labels=1, workers=2)
    assert _digests(tmp_path / "w") == _digests(world)


def test_other_seed_other_pictures(world, tmp_path):
    _write(tmp_path, seed=5)
    assert (tmp_path / "train2017/000000000001.jpg").read_bytes() != (world / "train2017/000000000001.jpg").read_bytes()


def test_a_smaller_world_is_the_beginning_of_a_larger_one(world, tmp_path):
    _write(tmp_path, train=3, val=1)
    few, many = _digests(tmp_path), _digests(world)
    assert [name for name in few if name.endswith(".jpg") and few[name] != many[name]] == []
    for kind in ("instances", "captions"):
        few_json = _json(tmp_path / f"annotations/{kind}_train2017.json")
        many_json = _json(world / f"annotations/{kind}_train2017.json")
        assert few_json["images"] == many_json["images"][:3]
        assert few_json["annotations"] == many_json["annotations"][: len(few_json["annotations"])]


def test_train_and_val_pictures_differ(world):
    first = "000000000001.jpg"
    assert (world / "train2017" / first).read_bytes() != (world / "val2017" / first).read_bytes()


def test_pycocotools_reads_the_annotations(world, capsys):
    coco = COCO(str(world / "annotations/instances_train2017.json"))
    assert len(coco.getImgIds()) == 20
    assert coco.getCatIds() == list(range(1, 81))
    for annotation in coco.loadAnns(coco.getAnnIds()):
        image = coco.imgs[annotation["image_id"]]
        assert coco.annToMask(annotation).shape == (image["height"], image["width"])
        assert annotation["phrase"]
    for image in coco.imgs.values():
        with Image.open(world / "train2017" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.format == "JPEG"


def test_categories_carry_roles_and_synonyms(world):
    categories = _json(world / "annotations/instances_val2017.json")["categories"]
    assert [category["role"] for category in categories].count("base") == 48
    assert [category["role"] for category in categories].count("novel") == 17
    assert categories[0] == {
        "id": 1,
        "name": NOUNS[0].name,
        "supercategory": NOUNS[0].supercategory,
        "role": NOUNS[0].role,
        "synonyms": list(NOUNS[0].synonyms),
    }


def test_captions_follow_coco(world):
    captions = _json(world / "annotations/captions_val2017.json")
    assert len(captions["annotations"]) == 5 * 10
    assert {annotation["image_id"] for annotation in captions["annotations"]} == set(range(1, 11))
    assert set(captions["annotations"][0]) == {"id", "image_id", "caption"}


def test_image_label_folders(world):
    labels = _json(world / "annotations/image_labels.json")
    assert len(labels["images"]) == 65
    for image in labels["images"]:
        (category_id,) = image["pos_category_ids"]
        noun = NOUNS[category_id - 1]
        assert noun.role != "unused"
        assert image["file_name"] == f"{noun.name.replace(' ', '_')}/0001.jpg"
        with Image.open(world / "image_labels" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])


def test_summary_counts_what_is_written(world):
    summary = _write(world, train=20, val=10, labels=1)
    annotations = _json(world / "annotations/instances_train2017.json")["annotations"]
    assert (summary.train_images, summary.val_images, summary.label_images) == (20, 10, 65)
    assert sum(summary.train_boxes.values()) == len(annotations)
    assert summary.train_boxes["novel"] == sum(NOUNS[a["category_id"] - 1].role == "novel" for a in annotations)


def test_a_complete_world_is_left_alone(tmp_path):
    ticks: list[int] = []
    _write(tmp_path)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_world(tmp_path, train=6, val=3, seed=4, image_labels_per_class=0, on_image=lambda: ticks.append(1))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times
    assert len(ticks) == 9


def test_an_interrupted_world_is_finished_to_the_same_bytes(tmp_path):
    def stop_after_four() -> None:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt

    calls: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        write_world(tmp_path / "a", train=6, val=3, seed=4, image_labels_per_class=0, on_image=stop_after_four)
    assert not (tmp_path / "a/annotations").exists()
    first = tmp_path / "a/train2017/000000000001.jpg"
    painted_at = first.stat().st_mtime_ns
    _write(tmp_path / "a")
    _write(tmp_path / "b")
    assert first.stat().st_mtime_ns == painted_at
    assert _digests(tmp_path / "a") == _digests(tmp_path / "b")


def test_lost_files_are_written_again(tmp_path):
    _write(tmp_path)
    before = _digests(tmp_path)
    for name in ("train2017/000000000002.jpg", "annotations/captions_val2017.json"):
        (tmp_path / name).unlink()
    _write(tmp_path)
    assert _digests(tmp_path) == before


def test_a_foreign_folder_is_refused_and_untouched(tmp_path):
    (tmp_path / "thesis.txt").write_text("precious")
    with pytest.raises(ConfigError, match="is not a world"):
        _write(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_another_world_is_refused_and_untouched(tmp_path):
    _write(tmp_path, train=1, val=1)
    before = _digests(tmp_path)
    with pytest.raises(ConfigError, match=r"holds another world \(seed 4\)"):
        _write(tmp_path, train=1, val=1, seed=5)
    with pytest.raises(ConfigError, match="train 1"):
        _write(tmp_path, train=2, val=1)
    assert _digests(tmp_path) == before


def test_a_file_in_the_way_and_negative_numbers_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="is not a world"):
        _write(tmp_path / "file")
    with pytest.raises(ConfigError, match="cannot write to"):
        _write(tmp_path / "file" / "inside")
    with pytest.raises(ConfigError, match="negative"):
        _write(tmp_path / "new", train=-1)
    assert not (tmp_path / "new").exists()
