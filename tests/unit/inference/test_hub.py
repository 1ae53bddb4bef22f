from __future__ import annotations

import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from ovbridge.detector import DetectorMetadata, build_detector, load_detector, world_r18_fpn
from ovbridge.errors import CheckpointError
from ovbridge.inference import Detector, builtin_checkpoint, sources
from ovbridge.inference.hub import model_card

METADATA = DetectorMetadata(
    stage="pis",
    vocabulary=({"name": "mug", "role": "base"}, {"name": "kite: red", "role": "novel"}),
    text_encoder="builtin",
    recipe="world",
)
RESULTS = {"protocol": "ov-coco", "dataset": "val", "images": 300, "ap50": {"base": 41.25, "novel": None, "all": 30.0}}


def _card(results: dict[str, Any] | None) -> tuple[dict[str, Any], str]:
    text = model_card("me/kites", world_r18_fpn(embedding_dim=8), METADATA, results)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_card_states_what_was_measured_and_nothing_else() -> None:
    head, body = _card({"stages": {"base": {"ap50": {"all": 1.0}}, "pis": RESULTS}})
    metrics = head["model-index"][0]["results"][0]["metrics"]
    assert [(m["name"], m["value"]) for m in metrics] == [("AP50 base", 41.25), ("AP50 all", 30.0)]
    assert head["pipeline_tag"] == "zero-shot-object-detection"
    assert "| AP50 base | 41.2 |" in body or "| AP50 base | 41.3 |" in body
    assert "ov-coco on val, 300 images" in body
    assert 'Detector.load("hf://me/kites")' in body
    assert "AP50 novel" not in body


def test_card_without_results_says_so() -> None:
    head, body = _card(None)
    assert "model-index" not in head
    assert "No results were given" in body
    assert _card({"stages": {"base": RESULTS}})[0] == head


def test_push_uploads_checkpoint_card_and_results(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, Any] = {}

    class Hub:
        def __init__(self, token: str | None) -> None:
            seen["token"] = token

        def create_repo(self, repository: str, *, private: bool, exist_ok: bool) -> None:
            seen["repository"] = (repository, private)

        def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> str:
            seen["files"] = sorted(path.name for path in folder_path.iterdir())
            seen["names"] = load_detector(folder_path / "detector.safetensors")[1].names
            return "https://hub/commit"

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(HfApi=Hub))
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), torch.eye(8)[:2])
    detector = Detector(model, METADATA, device="cpu")
    assert detector.push_to_hub("hf://me/kites", token="t", results=RESULTS) == "https://hub/commit"
    assert seen == {
        "token": "t",
        "repository": ("me/kites", False),
        "files": ["README.md", "detector.safetensors", "results.json"],
        "names": ("mug", "kite: red"),
    }


def test_hub_faults_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no hub address"):
        Detector.load("hf://only-a-name")

    def offline(*args: object, **options: object) -> str:
        raise ConnectionError("no route\nsecond line")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=offline))
    with pytest.raises(CheckpointError, match=r"hf://me/kites@v1 \(no route\)") as caught:
        Detector.load("hf://me/kites@v1")
    assert "\n" not in str(caught.value)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(CheckpointError, match="pip install"):
        Detector.load("hf://me/kites")


def test_hub_file_is_loaded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def download(repository: str, filename: str, *, revision: str | None) -> str:
        return str(tmp_path / f"{repository.replace('/', '-')}-{filename}-{revision}")

    monkeypatch.setitem(sys.modules, "huggingface_hub", types.SimpleNamespace(hf_hub_download=download))
    assert sources.checkpoint_path("hf://me/kites@v1").name == "me-kites-detector.safetensors-v1"


def test_builtin_checkpoint_is_the_packages_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sources, "__file__", str(tmp_path / "ovbridge" / "inference" / "sources.py"))
    with pytest.raises(CheckpointError, match="built-in detector"):
        builtin_checkpoint()
    place = tmp_path / "ovbridge" / "recipes" / "weights" / "world_detector.safetensors"
    place.parent.mkdir(parents=True)
    place.touch()
    assert builtin_checkpoint() == sources.checkpoint_path("builtin") == place
