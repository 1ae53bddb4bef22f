from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovbridge.data.image_labels import TaggedImage, TaggedImages
from ovbridge.errors import DataError
from ovbridge.labeling.sources import default_threshold, image_keys_in, names_by_image, vocabulary_in
from ovbridge.vocabulary import Vocabulary


def tagged(*images: tuple[str, tuple[int, ...], tuple[str, ...]]) -> TaggedImages:
    return TaggedImages(
        vocabulary=Vocabulary.of_names(["mug", "kite"]),
        images=tuple(
            TaggedImage(image_id=i, file_name=name, height=4, width=4, class_ids=ids, captions=captions)
            for i, (name, ids, captions) in enumerate(images)
        ),
    )


def test_images_of_a_folder_are_sorted_paths_below_it(tmp_path: Path) -> None:
    for name in ("b.JPG", "a/z.png", "a/notes.txt", "c.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_keys_in(tmp_path) == ["a/z.png", "b.JPG", "c.webp"]
    (tmp_path / "a" / "z.png").unlink()
    with pytest.raises(DataError, match="no image in"):
        image_keys_in(tmp_path / "a")


def test_untagged_images_are_not_labelled() -> None:
    images = tagged(("x.jpg", (1, 0), ()), ("y.jpg", (), ()))
    assert names_by_image(images) == {"x.jpg": ("kite", "mug")}


def test_threshold_follows_where_the_labels_come_from() -> None:
    assert default_threshold(tagged(("x.jpg", (1,), ()))) == 0.0
    assert default_threshold(tagged(("x.jpg", (), ()), ("y.jpg", (1,), ("a kite",)))) == 0.95


def test_vocabulary_is_in_order_of_category_id(tmp_path: Path) -> None:
    file = tmp_path / "x.json"
    file.write_text(json.dumps({"categories": [{"id": 7, "name": "b"}, {"id": 2, "name": "a"}]}))
    assert vocabulary_in(file).names == ("a", "b")
    file.write_text(json.dumps({"categories": []}))
    with pytest.raises(DataError, match="has no categories"):
        vocabulary_in(file)
