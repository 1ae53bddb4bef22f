from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.cli.detect import drawing_paths, image_paths, run
from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.errors import ConfigError, DataError
from ovbridge.vocabulary import Vocabulary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("b.jpg", "a.png", "sub/b.jpg"):
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((40, 50, 3), 90, np.uint8)).save(tmp_path / "in" / name)
    (tmp_path / "in" / "notes.txt").write_text("no picture")
    return tmp_path / "in"


def test_folders_and_globs_are_expanded_in_order(folder: Path) -> None:
    everything = [folder / "a.png", folder / "b.jpg", folder / "sub/b.jpg"]
    assert image_paths([str(folder)]) == everything
    assert image_paths([str(folder / "*.jpg")]) == [folder / "b.jpg"]
    assert image_paths([str(folder / "b.jpg"), str(folder)]) == [everything[1], everything[0], everything[2]]


def test_nothing_to_detect_in_is_said(folder: Path) -> None:
    (folder / "empty").mkdir()
    for words in ([str(folder / "empty")], [str(folder / "*.webp")]):
        with pytest.raises(DataError, match="holds no image"):
            image_paths(words)
    with pytest.raises(ConfigError, match="no image given"):
        image_paths([])


def test_drawings_never_collide_nor_replace_a_picture(folder: Path, tmp_path: Path) -> None:
    paths = image_paths([str(folder)])
    out = tmp_path / "out"
    assert drawing_paths(paths, out) == [out / "a.jpg", out / "b.jpg", out / "b_2.jpg"]
    assert drawing_paths(paths, None) == [None] * 3
    with pytest.raises(ConfigError, match="would replace"):
        drawing_paths(paths, folder)
    with pytest.raises(ConfigError, match="cannot be a folder"):
        drawing_paths(paths, folder / "notes.txt")


def test_pictures_and_json_come_out(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), torch.eye(8)[:2])
    metadata = DetectorMetadata(
        stage="base",
        vocabulary=tuple(Vocabulary.of_names(["mug", "kite"]).to_json()),
        text_encoder="none",
        extra={"test_size": [64, 64]},
    )
    save_detector(tmp_path / "detector.safetensors", model, metadata)
    options = ["--names", "kite", "--score-threshold", "0", "--max-detections", "3", "--device", "cpu", "--json"]
    run([str(folder), "--checkpoint", str(tmp_path), "--out", str(tmp_path / "out"), *options])
    printed = json.loads(capsys.readouterr().out)
    assert [Path(record["image"]).name for record in printed["images"]] == ["a.png", "b.jpg", "b.jpg"]
    for record in printed["images"]:
        assert (record["width"], record["height"]) == (50, 40)
        assert Image.open(record["drawn"]).size == (50, 40)
        assert len(record["detections"]) == 3
        assert {d["name"] for d in record["detections"]} == {"kite"}
