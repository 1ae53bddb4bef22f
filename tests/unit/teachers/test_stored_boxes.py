"""Boxes proposed before: every form that can be read, and who they belong to."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovbridge.errors import DataError, TeacherError
from ovbridge.teachers.protocol import StoredProposer, propose
from ovbridge.teachers.stored_boxes import StoredBoxes, load_stored_boxes

ANY = np.zeros((4, 4, 3), dtype=np.uint8)
COCO = {
    "images": [{"id": 139, "file_name": "a/000000000139.jpg"}, {"id": 7, "file_name": "empty.jpg"}],
    "categories": [{"id": 5, "name": "wine_glass"}, {"id": 9, "name": "cat"}],
}


def asked(stored: StoredBoxes, key: str, *queries: str) -> list[tuple[list[list[float]], list[float]]]:
    (found,) = propose(stored, [key], [ANY], [queries])
    return [(p.boxes_xyxy.tolist(), [round(s, 4) for s in p.scores.tolist()]) for p in found]


def written(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        path.write_text(json.dumps(content))
    return path


def test_our_json(tmp_path: Path) -> None:
    content = {
        "trained_on": "two pictures",
        "images": {
            "a/1.jpg": {"boxes": [[0, 0, 2, 2], [1, 1, 4, 4]], "scores": [0.25, 0.5], "names": ["cat", "Wine_Glass"]},
            "2.jpg": {"boxes": []},
        },
    }
    file = written(tmp_path / "boxes.json", content)
    stored = load_stored_boxes(str(file))
    assert isinstance(stored, StoredProposer)
    assert (stored.name, stored.trained_on, stored.knows_names) == (f"boxes:{file}", "two pictures", True)
    every, glass, dog = asked(stored, "a/1.jpg", "all objects", "every wine glass", "every dog")
    assert every == ([[1, 1, 4, 4], [0, 0, 2, 2]], [0.5, 0.25])
    assert glass == ([[1, 1, 4, 4]], [0.5])
    assert dog == ([], [])
    assert asked(stored, "2.jpg", "all objects") == [([], [])]
    with pytest.raises(LookupError, match="no boxes stored"):
        asked(stored, "3.jpg", "all objects")
    assert load_stored_boxes(str(file), trained_on="else").trained_on == "else"


def test_digest_follows_the_content(tmp_path: Path) -> None:
    first = load_stored_boxes(str(written(tmp_path / "1.json", {"images": {"a": {"boxes": []}}})))
    same = load_stored_boxes(str(written(tmp_path / "2.json", {"images": {"a": {"boxes": []}}})))
    other = load_stored_boxes(str(written(tmp_path / "3.json", {"images": {"b": {"boxes": []}}})))
    assert first.digest == same.digest != other.digest


def test_coco_results_by_number_or_by_annotation_file(tmp_path: Path) -> None:
    results = [
        {"image_id": 139, "category_id": 5, "bbox": [1, 2, 10, 20], "score": 0.5},
        {"image_id": 139, "category_id": 9, "bbox": [0, 0, 3, 3], "score": 0.75},
    ]
    file, annotations = written(tmp_path / "r.json", results), written(tmp_path / "i.json", COCO)
    by_number = load_stored_boxes(str(file))
    assert not by_number.knows_names
    assert asked(by_number, "train2017/000000000139.jpg", "all objects") == [
        ([[0, 0, 3, 3], [1, 2, 11, 22]], [0.75, 0.5])
    ]
    with pytest.raises(TeacherError, match="label regions"):
        asked(by_number, "000000000139.jpg", "every cat")
    named = load_stored_boxes(f"{file},{annotations}")
    assert named.knows_names
    assert asked(named, "a/000000000139.jpg", "every wine glass") == [([[1, 2, 11, 22]], [0.5])]
    assert asked(named, "empty.jpg", "all objects") == [([], [])]


def test_coco_annotations_are_boxes_with_names(tmp_path: Path) -> None:
    annotations = [
        {"id": 1, "image_id": 139, "category_id": 9, "bbox": [1, 1, 2, 2], "iscrowd": 0},
        {"id": 2, "image_id": 139, "category_id": 9, "bbox": [0, 0, 9, 9], "iscrowd": 1},
    ]
    stored = load_stored_boxes(str(written(tmp_path / "i.json", COCO | {"annotations": annotations})))
    assert asked(stored, "a/000000000139.jpg", "every cat") == [([[1, 1, 3, 3]], [1.0])]
    assert "annotations" in stored.trained_on


def test_mavl_pickle_of_all_images(tmp_path: Path) -> None:
    content = {"000000000139": ([[1, 2, 3, 4], [5, 6, 7, 8]], [0.25, 0.5]), "000000000140": ([], [])}
    stored = load_stored_boxes(str(written(tmp_path / "combined.pkl", content)))
    assert asked(stored, "000000000139.jpg", "all objects") == [([[5, 6, 7, 8], [1, 2, 3, 4]], [0.5, 0.25])]
    assert asked(stored, "000000000140.jpg", "all objects") == [([], [])]
    assert "LMDet" in stored.trained_on


def test_the_papers_rkd_folder_keeps_its_order(tmp_path: Path) -> None:
    folder = tmp_path / "classagnostic_distilfeats"
    written(folder / "000000000139.pkl", [([4, 4, 9, 9], torch.ones(1, 512)), ([-3, 0, 2, 2], torch.ones(1, 512))])
    written(folder / "n01" / "n01_7.pkl", [([0, 0, 1, 1], torch.ones(1, 512))])
    stored = load_stored_boxes(str(folder))
    assert asked(stored, "000000000139.jpg", "all objects") == [([[4, 4, 9, 9], [-3, 0, 2, 2]], [1.0, 0.5])]
    assert asked(stored, "n01/n01_7.JPEG", "all objects")[0][0] == [[0, 0, 1, 1]]
    assert "LMDet" in stored.trained_on


def test_the_papers_pis_folder_with_the_names_of_its_categories(tmp_path: Path) -> None:
    folder = tmp_path / "class_specific"
    pis = {5: ([np.array([1, 2, 30, 40])], [np.float32(0.96875)]), 9: ([], [])}
    written(folder / "000000000139.pkl", pis)
    annotations = written(tmp_path / "i.json", COCO)
    assert not load_stored_boxes(str(folder)).knows_names
    stored = load_stored_boxes(f"{folder},{annotations}")
    assert stored.knows_names
    glass, cat = asked(stored, "a/000000000139.jpg", "every wine glass", "every cat")
    assert glass == ([[1, 2, 30, 40]], [0.9688])
    assert cat == ([], [])


def test_arrays_of_five_columns(tmp_path: Path) -> None:
    stored = load_stored_boxes(str(written(tmp_path / "p.pkl", {"a.jpg": np.array([[0, 1, 2, 3, 0.5]])})))
    assert asked(stored, "x/a.jpg", "all objects") == [([[0, 1, 2, 3]], [0.5])]


def test_boxes_of_other_images_are_refused_before_the_run(tmp_path: Path) -> None:
    stored = load_stored_boxes(str(written(tmp_path / "b.json", {"images": {"a.jpg": {"boxes": []}}})))
    stored.check_knows(["b.jpg", "a.jpg"])
    with pytest.raises(DataError, match="none of the images"):
        stored.check_knows(["b.jpg"])
    with pytest.raises(DataError, match=r"lacks 2 of 3 images \(limit 50%\).*--max-failed 1") as caught:
        stored.check_knows(["b.jpg", "a.jpg", "c.jpg"], 0.5)
    assert len(str(caught.value).splitlines()) == 1
    stored.check_knows(["b.jpg", "a.jpg", "c.jpg"], 0.7)


def test_a_name_that_several_folders_have_is_nobodys(tmp_path: Path) -> None:
    for name, box in (("a/1", [0, 0, 1, 1]), ("c/1", [2, 2, 3, 3]), ("c/n2", [4, 4, 5, 5])):
        written(tmp_path / "f" / f"{name}.pkl", [(box, None)])
    stored = load_stored_boxes(str(tmp_path / "f"))
    assert asked(stored, "a/1.jpg", "all objects")[0][0] == [[0, 0, 1, 1]]
    assert asked(stored, "c/1.jpg", "all objects")[0][0] == [[2, 2, 3, 3]]
    assert asked(stored, "x/n2.jpg", "all objects")[0][0] == [[4, 4, 5, 5]]
    for key in ("x/1.jpg", "1.jpg"):
        with pytest.raises(LookupError, match="several images of this name"):
            asked(stored, key, "all objects")
    with pytest.raises(DataError, match="lacks 1 of 2"):
        stored.check_knows(["a/1.jpg", "x/1.jpg"], 0.0)


@pytest.mark.parametrize("store", ["f", "b.json"])
def test_two_images_do_not_share_the_boxes_of_one(tmp_path: Path, store: str) -> None:
    written(tmp_path / "f" / "1.pkl", [([0, 0, 1, 1], None)])
    written(tmp_path / "b.json", {"images": {"1": {"boxes": []}}})
    stored = load_stored_boxes(str(tmp_path / store))
    stored.check_knows(["a/1.jpg", "a/1.png"])
    with pytest.raises(DataError, match=r"one image 1 that a/1\.jpg and b/01\.jpg could both be"):
        stored.check_knows(["a/1.jpg", "b/01.jpg"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("x.json", {"images": {"a": {"boxes": [[1, 2, 3]]}}}, "four numbers"),
        ("x.json", {"images": {"a": {"boxes": [[1, 2, 3, 4]], "scores": [2.0]}}}, "between 0 and 1"),
        ("x.json", {"images": {"a": {"boxes": [[1, 2, 3, 4]], "scores": []}}}, "1 boxes, 0 scores"),
        ("x.json", {"images": {"a": {"boxes": [[1, 2, 3, float("nan")]]}}}, "finite"),
        ("x.json", {"images": {"a": {}}}, "boxes"),
        ("x.json", {"annotations": []}, "no boxes"),
        ("x.json", [{"image_id": 1}], "cannot be read"),
        ("x.pkl", [1, 2], "dictionary by image"),
        ("x.pkl", {"a": "boxes"}, "boxes, scores"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path: Path, name: str, content: Any, said: str) -> None:
    with pytest.raises(DataError, match=said) as caught:
        load_stored_boxes(str(written(tmp_path / name, content)))
    assert len(str(caught.value).splitlines()) == 1
    assert name in str(caught.value)


def test_absent_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.json does not exist"):
        load_stored_boxes(str(tmp_path / "absent.json"))
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match=r"no \.pkl"):
        load_stored_boxes(str(tmp_path / "nothing"))
