"""One file holds the whole detector; damaged and foreign files are named in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from ovbridge.detector import (
    DetectorConfig,
    DetectorMetadata,
    TwoStageDetector,
    build_detector,
    coco_r50_c4,
    load_detector,
    lvis_r50_fpn,
    read_metadata,
    save_detector,
    to_weight_transfer,
    world_r18_fpn,
)
from ovbridge.detector.checkpoint_file import FORMAT, refuse_foreign_target
from ovbridge.errors import CheckpointError

MakeDetector = Callable[..., TwoStageDetector]


def metadata(classes: int = 5) -> DetectorMetadata:
    return DetectorMetadata(
        stage="rkd",
        vocabulary=tuple({"name": f"thing {i}", "role": "base", "category_id": i} for i in range(classes)),
        text_encoder="builtin",
        bank_digest="abc",
        recipe="world",
        extra={"seed": 3},
    )


@pytest.mark.parametrize("config", [coco_r50_c4(transfer=True), lvis_r50_fpn(), world_r18_fpn(embedding_dim=64)])
def test_configuration_survives_json(config: DetectorConfig) -> None:
    assert DetectorConfig.from_json(json.loads(json.dumps(config.to_json()))) == config


def test_broken_configuration_names_the_field() -> None:
    record = world_r18_fpn(embedding_dim=8).to_json()
    record["rpn"]["nms_iou"] = "wide"
    with pytest.raises(CheckpointError, match=r"rpn\.nms_iou"):
        DetectorConfig.from_json(record)


def test_round_trip_keeps_weights_freezing_and_metadata(tmp_path: Path, tiny_detector: MakeDetector) -> None:
    model = to_weight_transfer(tiny_detector(), seed=1)
    path = tmp_path / "new" / "detector.safetensors"
    save_detector(path, model, metadata())
    loaded, seen = load_detector(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert seen.names == tuple(f"thing {i}" for i in range(5))
    assert replace(seen, versions={}) == metadata()
    assert seen.versions["torch"] == str(torch.__version__)
    state = model.state_dict()
    assert state.keys() == loaded.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in loaded.state_dict().items())
    frozen = {name for name, p in loaded.named_parameters() if not p.requires_grad}
    assert frozen == {"roi_head.projection.linear.weight", "roi_head.projection.linear.bias"}
    assert read_metadata(path)[1] == seen
    assert [p.name for p in path.parent.iterdir()] == [path.name]


def test_vocabulary_must_fit_the_bank(tmp_path: Path, tiny_detector: MakeDetector) -> None:
    with pytest.raises(CheckpointError, match="4 class names for a text bank of 5"):
        save_detector(tmp_path / "x.safetensors", tiny_detector(), metadata(4))
    assert list(tmp_path.iterdir()) == []


def test_missing_truncated_and_foreign_files(tmp_path: Path, tiny_detector: MakeDetector) -> None:
    path = tmp_path / "detector.safetensors"
    with pytest.raises(CheckpointError, match="does not exist"):
        load_detector(path)
    save_detector(path, tiny_detector(), metadata())
    whole = path.read_bytes()
    for length in (0, 5, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match="no complete safetensors file"):
            load_detector(path)
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(CheckpointError, match="no detector of ours"):
        load_detector(path)
    with pytest.raises(CheckpointError, match="choose another name"):
        refuse_foreign_target(path)
    path.write_bytes(whole)
    refuse_foreign_target(path)


def _save_a_fixed_detector(path: Path) -> None:
    config = world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8))
    extra = {"z": 1, "a": {"y": 2, "x": 3}}
    save_detector(path, build_detector(config, torch.eye(5, 8)), replace(metadata(), extra=extra))


def test_equal_detectors_are_equal_files_in_any_process(tmp_path: Path) -> None:
    here, there = tmp_path / "here.safetensors", tmp_path / "there.safetensors"
    _save_a_fixed_detector(here)
    code = (
        "import sys, pathlib, runpy; runpy.run_path(sys.argv[1])['_save_a_fixed_detector'](pathlib.Path(sys.argv[2]))"
    )
    environment = os.environ | {"PYTHONHASHSEED": "12345"}
    subprocess.run([sys.executable, "-c", code, __file__, str(there)], check=True, env=environment)
    assert here.read_bytes() == there.read_bytes()
    with safe_open(here, framework="pt") as file:
        assert list(file.metadata()) == [FORMAT]


def test_files_with_three_metadata_keys_are_read(tmp_path: Path, tiny_detector: MakeDetector) -> None:
    model, path = tiny_detector(), tmp_path / "old.safetensors"
    vocabulary = [{"name": f"thing {i}", "role": "base", "category_id": i} for i in range(5)]
    record = {"stage": "rkd", "vocabulary": vocabulary, "text_encoder": "builtin", "recipe": "world"}
    texts = {"format": FORMAT, "config": json.dumps(model.config.to_json()), "metadata": json.dumps(record)}
    save_file({name: value.clone() for name, value in model.state_dict().items()}, path, metadata=texts)
    loaded, seen = load_detector(path)
    assert (loaded.config, seen.stage, seen.recipe) == (model.config, "rkd", "world")
    save_file({"x": torch.zeros(1)}, path, metadata=texts | {"format": "ovbridge-detector-9"})
    with pytest.raises(CheckpointError, match="format 'ovbridge-detector-9'"):
        load_detector(path)
    for broken in ("{", "[]", '{"config": {}}', '{"config": {"name": 1}, "metadata": {}}'):
        save_file({"x": torch.zeros(1)}, path, metadata={FORMAT: broken})
        with pytest.raises(CheckpointError, match="write the checkpoint again") as caught:
            read_metadata(path)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("change", ["drop", "reshape", "add"])
def test_weights_that_do_not_fit_are_named(tmp_path: Path, tiny_detector: MakeDetector, change: str) -> None:
    path = tmp_path / "detector.safetensors"
    save_detector(path, tiny_detector(), metadata())
    with safe_open(path, framework="pt") as file:
        texts = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    if change == "drop":
        del tensors["rpn.conv.weight"]
    elif change == "reshape":
        tensors["rpn.conv.weight"] = torch.zeros(2, 2)
    else:
        tensors["surprise"] = torch.zeros(1)
    save_file(tensors, path, metadata=texts)
    with pytest.raises(CheckpointError, match=r"surprise" if change == "add" else r"rpn\.conv\.weight"):
        load_detector(path)
