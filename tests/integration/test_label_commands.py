"""The labelling and search commands from the command line, with teachers whose answers are known."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.cli.main import run
from ovbridge.label_store import LabelStore
from ovbridge.structures import Proposals
from ovbridge.vocabulary import TextBank, Vocabulary

COLOURS = {"red": (200, 0, 0), "green": (0, 200, 0), "blue": (0, 0, 200)}
BOXES = {"red": (4, 6, 20, 18), "green": (30, 2, 44, 30), "blue": (8, 20, 28, 30)}


class ColourProposer:
    """Boxes of the coloured rectangles on black; for "every <colour>" that one alone."""

    name, digest, trained_on = "colours", "a" * 64, "three colours"

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        return [[self._one(i, q) for q in per_image] for i, per_image in zip(images, queries, strict=True)]

    def _one(self, image: np.ndarray, query: str) -> Proposals:
        rows = []
        for name, colour in COLOURS.items():
            ys, xs = np.nonzero(np.abs(image.astype(int) - colour).sum(axis=2) < 60)
            if len(ys) > 20 and ("every" not in query or name in query):
                rows.append([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1, 0.5 + len(ys) / 10_000])
        table = torch.tensor(sorted(rows, key=lambda r: -r[4]), dtype=torch.float32).reshape(-1, 5)
        return Proposals(boxes_xyxy=table[:, :4], scores=table[:, 4])


class ColourClip:
    """Embeds a crop by its mean colour, a text by the colours it names."""

    name, digest, embedding_dim = "builtin", "b" * 64, 3

    def embed_crops(self, crops: Sequence[np.ndarray]) -> torch.Tensor:
        return torch.tensor(np.stack([c.reshape(-1, 3).mean(axis=0) for c in crops]), dtype=torch.float32)

    def embed_texts(self, texts: Sequence[str]) -> torch.Tensor:
        return torch.tensor([[1.0 if c in t else 0.01 for c in COLOURS] for t in texts])

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        embeddings = self.embed_texts([templates[0].format(n) for n in names])
        return TextBank(names=tuple(names), embeddings_KD=embeddings, encoder=self.name, templates=tuple(templates))


@pytest.fixture(autouse=True)
def teachers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "ovbridge.teachers.mavl.proposer.load_mavl", lambda name, device, precision="fp32": ColourProposer()
    )
    monkeypatch.setattr("ovbridge.teachers.clip.load_clip", lambda name, device, precision="fp32": ColourClip())


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    (folder / "more").mkdir(parents=True)
    for key, colours in {"0.png": ["red"], "1.png": ["red", "green"], "more/2.png": ["blue"], "3.png": []}.items():
        pixels = np.zeros((32, 48, 3), dtype=np.uint8)
        for colour in colours:
            x1, y1, x2, y2 = BOXES[colour]
            pixels[y1:y2, x1:x2] = COLOURS[colour]
        Image.fromarray(pixels).save(folder / key)
    return folder


@pytest.fixture
def ovbridge(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    def call(*words: object) -> tuple[int, str, str]:
        code = run([str(w) for w in words])
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call


def result(outcome: tuple[int, str, str]) -> Any:
    code, out, err = outcome
    assert code == 0, err
    return json.loads(out)


def test_regions_then_status(ovbridge, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    summary = result(ovbridge("label", "regions", "--images", images, "--store", store, "--json"))
    assert (summary["images"], summary["labelled"], summary["failed"]) == (4, 4, 0)
    found = LabelStore.open(store).regions(["0.png", "1.png", "more/2.png", "3.png"])
    assert found["0.png"].boxes_xyxy.tolist() == [list(BOXES["red"])]
    assert found["0.png"].embeddings.tolist() == [[200, 0, 0]]
    assert found["1.png"].boxes_xyxy.tolist() == [list(BOXES["green"]), list(BOXES["red"])]
    assert len(found["3.png"]) == 0
    status = result(ovbridge("label", "status", store, "--json"))
    assert (status["regions"]["images"], status["regions"]["failed"]) == (4, 0)
    code, out, _ = ovbridge("label", "status", store)
    assert code == 0
    assert "4 of 4 images, 4 boxes, 1 empty" in out
    again = result(ovbridge("label", "regions", "--images", images, "--store", store, "--json"))
    assert (again["done_before"], again["labelled"]) == (4, 0)


def coco(tmp_path: Path, images: list[dict[str, Any]], annotations: list[dict[str, Any]], categories: bool) -> Path:
    names = [{"id": 3 + 2 * i, "name": name, "supercategory": "paint"} for i, name in enumerate(COLOURS)]
    records = [{"id": i, "file_name": f"{i}.png", "height": 32, "width": 48, **extra} for i, extra in enumerate(images)]
    file = tmp_path / "labels.json"
    payload = {"images": records, "annotations": annotations, "categories": names if categories else []}
    file.write_text(json.dumps(payload))
    return file


def test_tags_from_category_ids(ovbridge, images: Path, tmp_path: Path) -> None:
    file = coco(tmp_path, [{"pos_category_ids": [3, 5]}, {"pos_category_ids": [5]}], [], categories=True)
    store = tmp_path / "store"
    summary = result(ovbridge("label", "tags", "--images", images, "--annotations", file, "--store", store, "--json"))
    assert summary["labelled"] == 2
    found = LabelStore.open(store).tags(["0.png", "1.png"], Vocabulary.of_names(list(COLOURS)))
    # Image 0 is tagged red and green but shows only red.
    assert found["0.png"].class_ids.tolist() == [0]
    assert found["1.png"].class_ids.tolist() == [1]
    assert found["1.png"].boxes_xyxy.tolist() == [list(BOXES["green"])]


def test_tags_from_captions_need_the_papers_score_by_default(ovbridge, images: Path, tmp_path: Path) -> None:
    captions = [{"id": 1, "image_id": 0, "caption": "A red thing."}, {"id": 2, "image_id": 1, "caption": "two things"}]
    captions_file = coco(tmp_path, [{}, {}], captions, categories=False)
    names = tmp_path / "names.json"
    names.write_text(json.dumps({"categories": [{"id": 1, "name": "blue"}, {"id": 2, "name": "red"}]}))
    words = ["label", "tags", "--images", images, "--annotations", captions_file, "--names-from", names, "--json"]
    strict = result(ovbridge(*words, "--store", tmp_path / "strict"))
    assert strict["images"] == 1
    assert LabelStore.open(tmp_path / "strict").status()["tags"]["boxes"] == 0
    result(ovbridge(*words, "--store", tmp_path / "loose", "--threshold", "0.2"))
    found = LabelStore.open(tmp_path / "loose").tags(["0.png"], Vocabulary.of_names(["blue", "red"]))
    assert found["0.png"].class_ids.tolist() == [1]
    assert found["0.png"].boxes_xyxy.tolist() == [list(BOXES["red"])]


def test_text_banks_from_names_and_from_a_published_array(ovbridge, tmp_path: Path) -> None:
    store = tmp_path / "store"
    answer = result(ovbridge("label", "text", "--names", "red, blue", "--store", store, "--json"))
    assert (answer["names"], answer["dim"]) == (2, 3)
    bank = LabelStore.open(store).text_bank()
    assert bank.names == ("red", "blue")
    assert bank.embeddings_KD.argmax(dim=1).tolist() == [0, 2]
    np.save(tmp_path / "theirs.npy", np.eye(3, dtype=np.float16))
    file = coco(tmp_path, [], [], categories=True)
    published = ["--annotations", file, "--npy", tmp_path / "theirs.npy", "--name", "theirs"]
    result(ovbridge("label", "text", "--store", store, *published, "--json"))
    assert LabelStore.open(store).text_bank("theirs").names == ("red", "green", "blue")
    assert set(result(ovbridge("label", "status", store, "--json"))["text"]) == {"default", "theirs"}


def test_search_finds_what_the_text_says(ovbridge, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result(ovbridge("label", "regions", "--images", images, "--store", store, "--json"))
    answer = result(ovbridge("search", store, "a green thing", "--top", "3", "--json"))
    assert len(answer["hits"]) == 3
    assert (answer["hits"][0]["image"], answer["hits"][0]["box_xyxy"]) == ("1.png", list(BOXES["green"]))
    assert answer["hits"][0]["similarity"] > 0.99 > answer["hits"][1]["similarity"]
    sheet = np.asarray(Image.open(answer["sheet"]).convert("RGB")).astype(int)
    assert sheet.shape == (234, 632, 3)
    # The middle of the first tile shows the green rectangle.
    assert np.abs(sheet[108, 108] - COLOURS["green"]).max() < 30


def test_search_outlives_the_images(ovbridge, images: Path, tmp_path: Path) -> None:
    store = tmp_path / "store"
    result(ovbridge("label", "regions", "--images", images, "--store", store, "--json"))
    (images / "0.png").unlink()
    code, out, _ = ovbridge("search", store, "red", "--sheet", tmp_path / "found.png")
    assert code == 0
    assert "0.png" in out
    assert (tmp_path / "found.png").is_file()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["label", "regions", "--images", "absent", "--store", "S"], "absent does not exist"),
        (["label", "regions", "--images", "IMAGES", "--store", "S", "--teachers", "2"], "--engine ray"),
        (["label", "regions", "--images", "IMAGES", "--store", "S", "--proposer", "boxes:absent.json"], "absent.json"),
        (["label", "regions", "--images", "IMAGES", "--store", "S", "--proposer", "rpn:absent.safetensors"], "absent"),
        (["label", "regions", "--images", "IMAGES", "--store", "S", "--crop-rule", "masked"], "cannot mask"),
        (["label", "all", "--images", "IMAGES", "--annotations", "absent.json", "--store", "S"], "absent.json"),
        (["label", "regions", "--images", "IMAGES", "--store", "S", "--shard", "2/2"], "--shard 2/2"),
        (["label", "regions", "--images", "IMAGES", "--store", "S", "--device", "abacus"], "abacus"),
        (
            ["label", "regions", "--images", "IMAGES", "--store", "S", "--engine", "ray", "--precision", "auto"],
            "say fp32 or bf16",
        ),
        (["label", "regions", "--images", "IMAGES"], "--store"),
        (["label", "tags", "--images", "IMAGES", "--annotations", "absent.json", "--store", "S"], "absent.json"),
        (["label", "text", "--store", "S"], "--names"),
        (["label", "text", "--store", "S", "--names", "a", "--template", "a photo"], "{}"),
        (["label", "status", "absent"], "label regions"),
        (["label", "statsu", "S"], "status"),
        (["search", "absent", "a mug"], "label regions"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(ovbridge, images: Path, tmp_path: Path, monkeypatch, words, said) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = ovbridge(*[images if w == "IMAGES" else w for w in words])
    assert code == 2
    assert out == ""
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "S").exists()


def test_ray_that_is_not_installed_is_said(ovbridge, images: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    code, _, err = ovbridge("label", "regions", "--images", images, "--store", tmp_path / "S", "--engine", "ray")
    assert code == 2
    assert "pip install 'ovbridge[ray]'" in err
    assert not (tmp_path / "S").exists()


def test_all_makes_both_tables_in_one_pass(ovbridge, images: Path, tmp_path: Path) -> None:
    file = coco(tmp_path, [{"pos_category_ids": [3, 5]}, {"pos_category_ids": [5]}], [], categories=True)
    store = tmp_path / "store"
    words = ["--images", images, "--annotations", file, "--store", store, "--json"]
    summary = result(ovbridge("label", "all", *words))
    assert (summary["images"], summary["labelled"], summary["failed"]) == (4, 4, 0)
    opened = LabelStore.open(store)
    assert opened.regions(["0.png"])["0.png"].boxes_xyxy.tolist() == [list(BOXES["red"])]
    assert opened.tags(["1.png"], Vocabulary.of_names(["green"]))["1.png"].boxes_xyxy.tolist() == [list(BOXES["green"])]
    status = result(ovbridge("label", "status", store, "--json"))
    assert (status["regions"]["images"], status["tags"]["images"]) == (4, 2)
    assert result(ovbridge("label", "regions", "--images", images, "--store", store, "--json"))["labelled"] == 0


def test_boxes_from_a_file_stand_in_for_a_proposer(ovbridge, images: Path, tmp_path: Path) -> None:
    boxes = {"trained_on": "nothing at all", "images": {f"{i}.png": {"boxes": [[1, 2, 21, 12]]} for i in (0, 1, 3)}}
    (tmp_path / "boxes.json").write_text(json.dumps(boxes))
    store = tmp_path / "store"
    words = ["label", "regions", "--images", images, "--store", store, "--proposer", f"boxes:{tmp_path}/boxes.json"]
    code, _, err = ovbridge(*words)
    assert code == 2  # more/2.png is not in the file: one of four
    assert "lacks 1 of 4 images" in err
    assert not store.exists()
    summary = result(ovbridge(*words, "--max-failed", "0.3", "--json"))
    assert summary["failures"] == {"more/2.png": "no boxes stored for this image"}
    assert LabelStore.open(store).regions(["0.png"])["0.png"].boxes_xyxy.tolist() == [[1, 2, 21, 12]]
    assert LabelStore.open(store).manifest("regions").proposer_trained_on == "nothing at all"
    code, out, _ = ovbridge("label", "status", store)
    assert "trained on: nothing at all" in out


def test_wrong_image_folder_is_said_before_any_work(ovbridge, images: Path, tmp_path: Path) -> None:
    file = coco(tmp_path, [{"pos_category_ids": [3]}], [], categories=True)
    code, _, err = ovbridge("label", "tags", "--images", images / "more", "--annotations", file, "--store", "S")
    assert code == 2
    assert "none of the images" in err


def test_broken_images_are_listed_and_fail_the_run_above_the_limit(ovbridge, images: Path, tmp_path: Path) -> None:
    (images / "broken.jpg").write_bytes((images / "0.png").read_bytes()[:60])
    words = ["label", "regions", "--images", images, "--store", tmp_path / "store"]
    code, _, err = ovbridge(*words)
    assert code == 2
    assert "1 of 5 images failed" in err
    status = result(ovbridge("label", "status", tmp_path / "store", "--json"))["regions"]
    assert (status["images"], status["failed"]) == (4, 1)
    assert list(status["failures"]) == ["broken.jpg"]
    tolerant = result(ovbridge(*words, "--max-failed", "0.5", "--json"))
    assert list(tolerant["failures"]) == ["broken.jpg"]


def test_search_refuses_another_clip(ovbridge, images: Path, tmp_path: Path, monkeypatch) -> None:
    result(ovbridge("label", "regions", "--images", images, "--store", tmp_path / "store", "--json"))
    monkeypatch.setattr(ColourClip, "digest", "c" * 64)
    code, _, err = ovbridge("search", tmp_path / "store", "red", "--clip", "other")
    assert code == 2
    assert "other weights" in err


@pytest.mark.usefixtures("undo_teachers")
def test_builtin_teachers_label_real_photographs(ovbridge, shared_data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "photos"
    folder.mkdir()
    photographs = sorted((shared_data / "tiny_coco" / "train2017").iterdir())[:4]
    for photograph in photographs:
        (folder / photograph.name).symlink_to(photograph)
    store = tmp_path / "store"
    result(ovbridge("label", "regions", "--images", folder, "--store", store, "--json"))
    found = LabelStore.open(store).regions([p.name for p in photographs])
    assert len(found) == 4
    for photograph in photographs:
        with Image.open(photograph) as image:
            width, height = image.size
        boxes = found[photograph.name].boxes_xyxy
        assert 1 <= len(boxes) <= 5
        assert bool((boxes >= 0).all())
        assert bool((boxes <= torch.tensor([width, height, width, height])).all())
    assert len(result(ovbridge("search", store, "a red mug", "--top", "4", "--json"))["hits"]) == 4


@pytest.fixture
def undo_teachers(monkeypatch: pytest.MonkeyPatch, teachers: None) -> None:
    monkeypatch.undo()
