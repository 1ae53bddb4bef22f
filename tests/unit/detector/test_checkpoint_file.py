"""One file holds the whole detector; damaged and foreign files are named in one line."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

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
BANK = "roi_head.classifier.text_KD"


def metadata(classes: int = 5) -> DetectorMetadata:
    return DetectorMetadata(
        stage="rkd",
        vocabulary=tuple({"name": f"thing {i}", "role": "base", "category_id": i} for i in range(classes)),
        text_encoder="builtin",
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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("classifier.scale", -1),
        ("rpn.nms_iou", -1),
        ("rpn.post_nms_test", -1),
        ("rpn.aspect_ratios", []),
        ("roi.canonical_stride", -1),
        ("pixels.size_divisibility", -1),
        ("pixels.std", [0, 1, 1]),
        ("projection.embedding_dim", -1),
        ("backbone.channels", []),
        ("backbone.stem_channels", -1),
        ("postprocess.nms_iou", float("nan")),
    ],
)
def test_numbers_that_make_no_detector_are_named(field: str, value: Any) -> None:
    record = world_r18_fpn(embedding_dim=8).to_json()
    part, name = field.split(".")
    record[part][name] = value
    with pytest.raises(CheckpointError, match=field.replace(".", r"\.")):
        DetectorConfig.from_json(record)


def test_round_trip_keeps_weights_freezing_and_metadata(tmp_path: Path, tiny_detector: MakeDetector) -> None:
    model = to_weight_transfer(tiny_detector(), seed=1)
    path = tmp_path / "new" / "detector.safetensors"
    save_detector(path, model, metadata())
    loaded, seen = load_detector(path)
    assert loaded.config == model.config
    assert not loaded.training
    assert seen.names == tuple(f"thing {i}" for i in range(5))
    assert replace(seen, versions={}, bank_digest="") == metadata()
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
    for broken in ("{", "[]", "[" * 100_000, '{"config": {}}', '{"config": {"name": 1}, "metadata": {}}'):
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


def _tamper(path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None]) -> None:
    """Rewrite a checkpoint after `change` has had its records and tensors."""
    with safe_open(path, framework="pt") as file:
        records = json.loads(file.metadata()[FORMAT])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    change(records, tensors)
    save_file(tensors, path, metadata={FORMAT: json.dumps(records)})


@pytest.mark.parametrize(
    ("bank", "old", "words"),
    [
        (lambda rows: rows.flip(0), False, "not those that were written together"),
        (lambda rows: rows * float("nan"), True, "'thing 0' is no unit vector"),
        (torch.zeros_like, True, "'thing 0' is no unit vector"),
        (lambda rows: rows.int(), True, r"should be \(5, 8\) float32, the file has \(5, 8\) int32"),
        (lambda rows: rows.sum(), True, r"the file has \(\) float32"),
    ],
)
def test_a_text_bank_of_other_names_is_refused(
    tmp_path: Path, bank: Callable[[torch.Tensor], torch.Tensor], old: bool, words: str
) -> None:
    def change(records: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        tensors[BANK] = bank(tensors[BANK]).contiguous()
        if old:
            del records["metadata"]["bank_digest"]

    path = tmp_path / "detector.safetensors"
    _save_a_fixed_detector(path)
    _tamper(path, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_detector(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("digest", ["", "0123abc"])
def test_files_whose_digest_cannot_be_checked_are_read(tmp_path: Path, digest: str) -> None:
    path = tmp_path / "detector.safetensors"
    _save_a_fixed_detector(path)
    _tamper(path, lambda records, tensors: records["metadata"].update(bank_digest=digest))
    model, seen = load_detector(path)
    save_detector(path, model, seen)
    assert load_detector(path)[1].bank_digest.startswith("stored-rows-sha256:")


def _without_classes(records: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
    records["metadata"]["vocabulary"] = []
    tensors[BANK] = tensors[BANK][:0]


def _set(part: str, *path: str | int, to: Any) -> Callable[[dict[str, Any], dict[str, torch.Tensor]], None]:
    def change(records: dict[str, Any], tensors: dict[str, torch.Tensor]) -> None:
        at: Any = records[part]
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "words"),
    [
        *(
            (_set("metadata", "extra", "test_size", to=size), "test_size")
            for size in ("a", ["a", "b"], [1, 2, 3], None, [float("nan"), 2], [0, 0], [-5, 100])
        ),
        (_set("metadata", "vocabulary", 1, to={"role": "base"}), "class 1 of its vocabulary has no name"),
        (_set("metadata", "vocabulary", 1, "name", to=["mug"]), "class 1 of its vocabulary has no name"),
        (_set("metadata", "vocabulary", 1, "name", to="thing 0"), "'thing 0' appears twice"),
        (_set("metadata", "vocabulary", 1, "name", to="\ud800"), "surrogates"),
        (_set("metadata", "vocabulary", to=7), "vocabulary"),
        (_without_classes, "its vocabulary has no class"),
        (_set("config", "backbone", "depths", to=[2]), "no detector can be built"),
        (_set("config", "classifier", "scale", to=-1), r"detector\.safetensors.*classifier\.scale"),
    ],
)
def test_records_that_make_no_detector_are_refused_in_one_line(
    tmp_path: Path, change: Callable[[dict[str, Any], dict[str, torch.Tensor]], None], words: str
) -> None:
    path = tmp_path / "detector.safetensors"
    _save_a_fixed_detector(path)
    _tamper(path, change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_detector(path)
    assert "\n" not in str(caught.value)
