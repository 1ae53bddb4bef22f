"""What texts mean which boxes, and which images may be used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ovbridge.errors import DataError
from ovbridge.teachers.mavl.samples import (
    BatchMaker,
    GroundedImage,
    SampleConfig,
    batch_pixels,
    load_grounded,
    resized_hw,
    vocabulary_texts,
    zoom,
)
from ovbridge.teachers.mavl.text import train_tokenizer
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES

CATEGORIES = [
    {"id": 3, "name": "mug", "role": "base", "synonyms": ["cup"]},
    {"id": 5, "name": "kite", "role": "base"},
    {"id": 9, "name": "umbrella", "role": "novel"},
]


def record() -> dict[str, Any]:
    def item(image: int, category: int, bbox: list[float], phrase: str, crowd: int = 0) -> dict[str, Any]:
        return {"id": 0, "image_id": image, "category_id": category, "bbox": bbox, "phrase": phrase, "iscrowd": crowd}

    return {
        "categories": CATEGORIES,
        "images": [{"id": i, "file_name": f"{i}.jpg", "width": 40, "height": 20} for i in range(1, 5)],
        "annotations": [
            item(1, 3, [0, 0, 10, 10], "a red mug"),
            item(1, 5, [20, 5, 20, 10], "a blue kite"),
            item(1, 3, [10, 10, 4, 4], "a red mug"),
            item(2, 5, [1, 1, 5, 5], "a kite"),
            item(2, 9, [1, 1, 5, 5], "a pink umbrella"),
            item(3, 3, [1, 1, 5, 5], "mugs", crowd=1),
        ],
    }


@pytest.fixture
def annotations(tmp_path: Path) -> Path:
    path = tmp_path / "instances.json"
    path.write_text(json.dumps(record()))
    return path


def maker(annotations: Path, **settings: Any) -> BatchMaker:
    data = load_grounded(annotations, exclude_roles=("novel",))
    tokenizer = train_tokenizer(vocabulary_texts(data), vocabulary_size=100)
    config = SampleConfig(**{"zoom_rate": 0.0, **settings})
    return BatchMaker(
        data, tokenizer, lambda _: np.zeros((20, 40, 3), np.uint8), token_positions=16, config=config, seed=1
    )


def test_images_with_excluded_nouns_or_crowds_are_left_out(annotations: Path) -> None:
    data = load_grounded(annotations, exclude_roles=("novel",))
    assert [image.file_name for image in data.images] == ["1.jpg", "4.jpg"]
    assert data.dropped == 2
    assert data.nouns == (("mug", "cup"), ("kite",))
    np.testing.assert_allclose(data.images[0].boxes_cxcywh[0], [0.125, 0.25, 0.25, 0.5])
    words = " ".join(vocabulary_texts(data))
    assert "umbrella" not in words
    assert "pink" not in words


def test_all_nouns_are_used_without_exclusion(annotations: Path) -> None:
    data = load_grounded(annotations)
    assert [image.file_name for image in data.images] == ["1.jpg", "2.jpg", "4.jpg"]
    assert data.roles == ("base", "base", "novel")


@pytest.mark.parametrize(
    ("text", "words"), [("[]", "not a COCO"), ('{"images": []}', "not a COCO"), ("{", "not a COCO")]
)
def test_other_json_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "x.json"
    path.write_text(text)
    with pytest.raises(DataError, match=words):
        load_grounded(path)


def test_missing_file_and_stray_annotation_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        load_grounded(tmp_path / "none.json")
    stray = record()
    stray["annotations"][0]["image_id"] = 77
    path = tmp_path / "x.json"
    path.write_text(json.dumps(stray))
    with pytest.raises(DataError, match="77"):
        load_grounded(path)


def test_texts_point_to_the_boxes_they_mean(annotations: Path) -> None:
    batches = maker(annotations, texts_per_image=2, unknown_rate=0.0, absent_rate=0.0)
    tokenizer = batches._tokenizer
    seen = set()
    for step in range(60):
        batch = batches.batch([0], step)
        for row, tokens in zip(batch.text_index.tolist(), batch.text.tokens, strict=True):
            ids = batch.token_ids[row]
            text = tokenizer.decode(ids.tolist())
            meant = (tokens.sum(dim=1) > 0).tolist()
            torch.testing.assert_close(tokens.sum(dim=1)[torch.tensor(meant)], torch.ones(sum(meant)))
            assert tokens[:, -1].max() == 0
            if text in CLASS_AGNOSTIC_QUERIES:
                assert meant == [True, True, True]
            elif text in ("every mug", "every cup"):
                assert meant == [True, False, True]
            elif text == "every kite":
                assert meant == [False, True, False]
            else:
                named = [tokenizer.decode(ids[span[: len(ids)] > 0].tolist()) for span in tokens if span.sum() > 0]
                assert meant == ["red mug" in text, "blue kite" in text, "red mug" in text]
                assert set(named) <= {"a red mug", "a blue kite"}
            seen.add(text)
    assert "a red mug and a blue kite" in seen or "a blue kite and a red mug" in seen
    assert {"every mug", "every cup", "every kite", "a red mug"} <= seen


def test_an_unknown_noun_means_every_object(annotations: Path) -> None:
    batches = maker(annotations, texts_per_image=1, unknown_rate=1.0)
    batch = batches.batch([0], 0)
    ids = batch.token_ids[batch.text_index[0]]
    assert [batches._tokenizer.id_to_token(i) for i in ids.tolist()[:4]] == ["<s>", "every", "<unk>", "</s>"]
    assert (batch.text.tokens[0].sum(dim=1) > 0).all()


def test_an_absent_noun_means_nothing(annotations: Path) -> None:
    batch = maker(annotations, texts_per_image=1, absent_rate=1.0, unknown_rate=0.0).batch([1], 0)
    assert batch.targets.counts == (0,)
    assert batch.text.tokens.sum() == 0


def test_flipping_moves_boxes_with_pixels(annotations: Path) -> None:
    batches = maker(annotations)
    centres = {round(float(batches.batch([0], step).targets.boxes[0, 0, 0]), 4) for step in range(12)}
    assert centres == {0.125, 0.875}


def test_batches_repeat_by_seed_and_step(annotations: Path) -> None:
    first, again = maker(annotations).batch([0, 1], 7), maker(annotations).batch([0, 1], 7)
    assert torch.equal(first.token_ids, again.token_ids)
    assert torch.equal(first.pixels, again.pixels)
    assert torch.equal(first.text.tokens, again.text.tokens)


def test_padding_marks_what_is_no_image() -> None:
    pixels, padding = batch_pixels([np.full((2, 3, 3), 255, np.uint8), np.zeros((3, 2, 3), np.uint8)])
    assert padding is not None
    assert padding[0].tolist() == [[False] * 3, [False] * 3, [True] * 3]
    assert padding[1, :, 2].all()
    assert pixels[0, 0, 0, 0].item() == pytest.approx((1 - 0.485) / 0.229)
    assert pixels[0, :, 2].abs().max() == 0
    assert batch_pixels([np.zeros((2, 3, 3), np.uint8)])[1] is None


@pytest.mark.parametrize(
    ("height", "width", "expected"), [(480, 640, (800, 1066)), (500, 375, (1066, 800)), (7, 7, (800, 800))]
)
def test_resized_size_truncates_the_long_side(height: int, width: int, expected: tuple[int, int]) -> None:
    assert resized_hw(height, width, 800) == expected


def test_zoom_moves_the_boxes_with_the_pixels() -> None:
    pixels = np.zeros((80, 120, 3), np.uint8)
    pixels[20:40, 30:60] = 255
    pixels[60:70, 100:110, 0] = 255
    boxes = np.array([[45 / 120, 30 / 80, 30 / 120, 20 / 80], [105 / 120, 65 / 80, 10 / 120, 10 / 80]], np.float32)
    image = GroundedImage(
        file_name="", width=120, height=80, boxes_cxcywh=boxes, nouns=np.array([4, 7]), phrases=("a mug", "a kite")
    )
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        shown, window = zoom(image, pixels, random, SampleConfig())
        assert window.shape == pixels.shape
        assert len(shown.nouns) == len(shown.phrases) == len(shown.boxes_cxcywh)
        seen.add(tuple(shown.nouns.tolist()))
        for noun, (cx, cy, w, h) in zip(shown.nouns, shown.boxes_cxcywh, strict=True):
            marked = window[:, :, 2] > 127 if noun == 4 else (window[:, :, 0] > 127) & (window[:, :, 2] < 128)
            rows, columns = np.nonzero(marked)
            found = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            reported = [(cx - w / 2) * 120, (cy - h / 2) * 80, (cx + w / 2) * 120, (cy + h / 2) * 80]
            np.testing.assert_allclose(reported, found, atol=2.0)
    assert seen >= {(4,), (4, 7)}, "an object cut by the window's edge is no target, one inside is"


def test_zoomed_batches_keep_boxes_nouns_and_texts_together(annotations: Path) -> None:
    zoomed = maker(annotations, zoom_rate=1.0, largest_zoom=2.0).batch([0, 0], 0)
    assert zoomed.pixels.shape == (2, 3, 20, 40)
    for n, count in enumerate(zoomed.targets.counts):
        boxes = zoomed.targets.boxes[n, :count]
        assert ((boxes >= 0) & (boxes <= 1)).all()
