"""Whatever a user gets wrong: exit code 2, one line on standard error, no traceback, nothing overwritten."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.vocabulary import Vocabulary


def _ovbridge(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "ovbridge.cli.main", *map(str, words)], capture_output=True, text=True, check=False
    )


def _in_process(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    """Standard error of a command that must fail as a user's mistake; in this process, as starting torch takes time."""
    from ovbridge.cli.main import run

    assert run([str(word) for word in words]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1
    return captured.err


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "detector.safetensors"
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), torch.eye(8)[:2])
    vocabulary = tuple(Vocabulary.of_names(["mug", "kite"]).to_json())
    save_detector(path, model, DetectorMetadata(stage="base", vocabulary=vocabulary, text_encoder="none"))
    return path


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    Image.fromarray(np.zeros((30, 30, 3), np.uint8)).save(tmp_path / "p.jpg")
    return tmp_path / "p.jpg"


def test_a_real_process_leaves_with_two_and_one_line(tmp_path: Path) -> None:
    done = _ovbridge("detect", tmp_path / "none.jpg", "--checkpoint", tmp_path / "none.safetensors")
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "Traceback" not in done.stderr


def test_missing_image(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _in_process(capsys, "detect", tmp_path / "none.jpg", "--checkpoint", checkpoint)
    assert "none.jpg does not exist" in line


def test_broken_image(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff\xe0 nothing more")
    assert "broken.jpg" in _in_process(capsys, "detect", tmp_path / "broken.jpg", "--checkpoint", checkpoint)


def test_checkpoint_of_another_kind(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "x.pth").write_bytes(b"PK\x03\x04 a pickle")
    assert "ovbridge convert" in _in_process(capsys, "detect", picture, "--checkpoint", tmp_path / "x.pth")


def test_name_without_an_embedding(checkpoint: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _in_process(capsys, "detect", picture, "--checkpoint", checkpoint, "--names", "mug,teapot")
    assert "'teapot'" in line
    assert "'mug'" not in line


def test_unknown_words(picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "did you mean 'ovbridge detect'" in _in_process(capsys, "detcet", picture)
    assert "--out is required" in _in_process(capsys, "export")
    assert "perhaps --names" in _in_process(capsys, "detect", picture, "--checkpoint", "x", "--nmaes", "mug")


def test_unknown_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "no_such_recipe" in _in_process(capsys, "train", "no_such_recipe", "--out", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("has_bf16", [True, False])
def test_unknown_stage(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, has_bf16: bool
) -> None:
    monkeypatch.setattr("ovbridge.device.bf16_pays", lambda device: has_bf16)  # what the demo may have to say first
    assert "rkdd" in _in_process(capsys, "demo", "--out", tmp_path / "demo", "--stages", "base,rkdd")
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("content", ["[1, 2]", '{"images": 3}', "not json at all", "{}"])
def test_json_that_is_not_coco(tmp_path: Path, content: str, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "gt.json").write_text(content)
    (tmp_path / "results.json").write_text(json.dumps([]))
    line = _in_process(
        capsys, "evaluate", "--predictions", tmp_path / "results.json", "--annotations", tmp_path / "gt.json",
        "--protocol", "ov-coco",
    )  # fmt: skip
    assert "gt.json" in line
