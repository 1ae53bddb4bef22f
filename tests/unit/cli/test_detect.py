from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.cli.detect import run
from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.errors import ConfigError, DataError, OVBridgeError, TeacherError, VocabularyError
from ovbridge.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), torch.eye(8)[:2])
    metadata = DetectorMetadata(
        stage="base",
        vocabulary=tuple(Vocabulary.of_names(["mug", "kite"]).to_json()),
        text_encoder="none",
        extra={"test_size": [64, 64]},
    )
    path = tmp_path_factory.mktemp("run") / "detector.safetensors"
    save_detector(path, model, metadata)
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "sub/b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def _options(checkpoint: Path, *more: str) -> list[str]:
    return ["--checkpoint", str(checkpoint), "--score-threshold", "0", "--max-detections", "3", "--json", *more]


def test_pictures_and_json_come_out(
    folder: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run([str(folder), "--names", "kite", "--out", str(tmp_path / "out"), *_options(checkpoint.parent)])
    printed = json.loads(capsys.readouterr().out)
    assert [Path(record["image"]).name for record in printed["images"]] == ["a.png", "b.jpg", "b.jpg"]
    assert [Path(record["drawn"]).name for record in printed["images"]] == ["a.jpg", "b.jpg", "b_2.jpg"]
    for record in printed["images"]:
        assert (record["width"], record["height"]) == (50, 40)
        assert Image.open(record["drawn"]).size == (50, 40)
        assert len(record["detections"]) == 3
        assert {d["name"] for d in record["detections"]} == {"kite"}


def test_every_format_agrees(
    folder: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    formats = ("json", "coco", "yolo", "label-studio")
    run([str(folder / "*.jpg"), "--out", str(out), *_options(checkpoint, "--format", *formats)])
    printed = json.loads(capsys.readouterr().out)["images"]
    assert json.loads((out / "detections.json").read_text())["images"] == printed
    assert not list(out.glob("*.jpg"))
    x1, y1, x2, y2 = printed[0]["detections"][0]["box_xyxy"]
    number = ["mug", "kite"].index(printed[0]["detections"][0]["name"])
    coco = json.loads((out / "coco_results.json").read_text())[0]
    about = json.loads((out / "coco_images.json").read_text())
    assert coco["bbox"] == pytest.approx([x1, y1, x2 - x1, y2 - y1], abs=0.02)
    assert about["categories"][number] == {"id": coco["category_id"], "name": ["mug", "kite"][number]}
    assert about["images"][0]["id"] == coco["image_id"]
    assert (out / "classes.txt").read_text().split() == ["mug", "kite"]
    yolo = (out / "labels" / "b.txt").read_text().splitlines()[0].split()
    assert int(yolo[0]) == number
    assert float(yolo[1]) * 50 == pytest.approx((x1 + x2) / 2, abs=0.02)
    assert float(yolo[4]) * 40 == pytest.approx(y2 - y1, abs=0.02)
    value = json.loads((out / "label_studio.json").read_text())[0]["predictions"][0]["result"][0]["value"]
    assert value["x"] == pytest.approx(2 * x1, abs=0.05)
    assert value["height"] == pytest.approx((y2 - y1) / 40 * 100, abs=0.05)


def test_nothing_is_overwritten_unasked(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    command = [str(folder / "a.png"), "--out", str(tmp_path / "out"), *_options(checkpoint)]
    run(command)
    before = (tmp_path / "out" / "a.jpg").stat().st_mtime_ns
    with pytest.raises(ConfigError, match=r"a\.jpg exists.*--overwrite"):
        run(command)
    assert (tmp_path / "out" / "a.jpg").stat().st_mtime_ns == before
    run([*command, "--overwrite"])
    with pytest.raises(ConfigError, match="would replace"):
        run([str(folder), "--out", str(folder), *_options(checkpoint), "--overwrite"])
    with pytest.raises(ConfigError, match="cannot be a folder"):
        run([str(folder), "--out", str(folder / "notes.txt"), *_options(checkpoint)])


def test_unreadable_pictures_are_named_and_the_rest_is_done(
    folder: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "aa.jpg").write_bytes(b"\xff\xd8 not really")
    with pytest.raises(DataError, match=r"aa\.jpg"):
        run([str(folder), *_options(checkpoint)])
    printed = json.loads(capsys.readouterr().out)
    assert len(printed["images"]) == 3
    assert [Path(s["image"]).name for s in printed["skipped"]] == ["aa.jpg"]


def test_json_says_what_was_skipped(
    folder: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = folder / "aa.jpg"
    bad.write_bytes(b"\xff\xd8 not really")
    with pytest.raises(DataError):
        run([str(bad), *_options(checkpoint)])
    printed = json.loads(capsys.readouterr().out)
    assert printed["images"] == []
    assert [s["image"] for s in printed["skipped"]] == [str(bad)]
    with pytest.raises(DataError):
        run([str(folder), "--out", str(tmp_path / "out"), *_options(checkpoint, "--format", "json")])
    assert json.loads(capsys.readouterr().out) == json.loads((tmp_path / "out" / "detections.json").read_text())


def test_frames_and_pictures_do_not_share_files(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, out = tmp_path / "in", tmp_path / "out"
    folder.mkdir()
    Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(folder / "clip_000000.jpg")
    writer = cv2.VideoWriter(str(folder / "clip.avi"), cv2.VideoWriter_fourcc(*"MJPG"), 10, (64, 48))
    writer.write(np.zeros((48, 64, 3), np.uint8))
    writer.release()
    run([str(folder), "--out", str(out), *_options(checkpoint, "--format", "pictures", "yolo")])
    drawn = [record["drawn"] for record in json.loads(capsys.readouterr().out)["images"]]
    assert drawn == [str(out / "clip_000000.jpg"), str(out / "clip_000000_2.jpg")]
    assert len(list((out / "labels").iterdir())) == 2


@pytest.mark.parametrize(
    ("taken", "form", "message"),
    [
        ("a.jpg/", "pictures", "is a folder"),
        ("detections.json/", "json", "is a folder"),
        ("labels", "yolo", "is no folder"),
    ],
)
def test_folders_where_files_go_are_named(
    folder: Path, tmp_path: Path, checkpoint: Path, taken: str, form: str, message: str
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / taken).mkdir() if taken.endswith("/") else (out / taken).touch()
    with pytest.raises(ConfigError, match=message):
        run([str(folder / "a.png"), "--out", str(out), "--overwrite", *_options(checkpoint, "--format", form)])


def test_names_from_a_file_with_synonyms_and_thresholds(
    folder: Path, tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "names.txt").write_text("\nkite|mug = 1\n")
    run([str(folder / "a.png"), "--names-file", str(tmp_path / "names.txt"), *_options(checkpoint)])
    assert json.loads(capsys.readouterr().out)["images"][0]["detections"] == []
    run([str(folder / "a.png"), "--names", f"@{tmp_path / 'names.txt'}", *_options(checkpoint)])
    assert json.loads(capsys.readouterr().out)["images"][0]["detections"] == []
    run([str(folder / "a.png"), "--names", "kite|mug", *_options(checkpoint)])
    found = json.loads(capsys.readouterr().out)["images"][0]["detections"]
    assert [d["name"] for d in found] == ["kite"] * 3


def test_only_line_ends_part_the_names_of_a_file(folder: Path, tmp_path: Path, checkpoint: Path) -> None:
    (tmp_path / "names.txt").write_bytes("mug\r\nkite\u2028mug\x0bmug\x85mug\n".encode())
    with pytest.raises(TeacherError, match=r"no stored text embedding for 'kite.*mug.*mug.*mug', and"):
        run([str(folder / "a.png"), "--names-file", str(tmp_path / "names.txt"), *_options(checkpoint)])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--names", "mug=2"], VocabularyError, "from 0 to 1"),
        (["--names", "mug,mug"], VocabularyError, "given twice"),
        (["--names", "@no.txt"], VocabularyError, r"names file no\.txt cannot be read"),
        (["--every", "0"], ConfigError, "--every is 0"),
        (["--batch", "0"], ConfigError, "--batch is 0"),
        (["--tile", "4"], ConfigError, "too small"),
        (["--tile", "64", "--overlap", "1"], ConfigError, "overlap"),
        (["--format", "gif"], ConfigError, "gif"),
        (["--like", "=x.jpg"], ConfigError, "neither a crop"),
        (["--like", "cup=x.jpg"], DataError, "x.jpg does not exist"),
        (["--like", "x" * 300], DataError, "does not exist"),
        (["--like", "cup=PICTURE"], TeacherError, "the examples"),
        (["--names", " ,"], VocabularyError, "holds no name"),
        (["--format", "coco"], ConfigError, "--format coco writes into a folder: name one with --out"),
        (["--format"], ConfigError, "--format names nothing"),
        (["--overlap", "0.5"], ConfigError, "--overlap 0.5 is that of tiles"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, checkpoint: Path, options: list[str], error: type[OVBridgeError], message: str
) -> None:
    picture = str(folder / "a.png")
    with pytest.raises(error, match=message) as caught:
        run([picture, "--checkpoint", str(checkpoint), *(word.replace("PICTURE", picture) for word in options)])
    assert "\n" not in str(caught.value)


def test_tiles_find_what_the_whole_picture_shows_too_small(
    tmp_path: Path, checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (100, 300, 3), dtype=np.uint8)).save(tmp_path / "w.png")
    run([str(tmp_path / "w.png"), "--tile", "64", *_options(checkpoint, "--max-detections", "50")])
    boxes = [d["box_xyxy"] for d in json.loads(capsys.readouterr().out)["images"][0]["detections"]]
    assert len(boxes) == 50
    assert max(box[2] for box in boxes) > 236
