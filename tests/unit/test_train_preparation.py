"""Options that change how a model computes but not what, runs of earlier versions, and the best detector of a run."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import ovbridge.validation
from ovbridge.config_tree import apply_overrides, to_json
from ovbridge.detector import DetectorMetadata, build_detector, load_detector, world_r18_fpn
from ovbridge.errors import ConfigError
from ovbridge.recipes import recipe_named
from ovbridge.run_config import RunConfig
from ovbridge.train_preparation import prepare_model
from ovbridge.train_run import with_new_fields
from ovbridge.training.batches import BatchConfig, build_batches
from ovbridge.training.inputs import DataConfig
from ovbridge.training.ranks import Peers
from ovbridge.training.stages import STAGES
from ovbridge.validation import Validation, ValidationConfig, check_validation


def _config(stage: str, *overrides: str) -> RunConfig:
    detector = world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8))
    return apply_overrides(replace(recipe_named("world", stage), detector=detector), overrides)


def test_checkpointed_activations_give_the_same_gradients_and_names() -> None:
    config = _config("rkd", "loop.checkpoint_activations=true")
    gradients = []
    for prepared in (False, True):
        model = build_detector(config.detector, torch.eye(8)[:2])
        names = list(model.state_dict())
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.eval()
        if prepared:
            prepare_model(model, config, Peers())
            assert list(model.state_dict()) == names
        features = model.encode([torch.full((3, 64, 64), 100, dtype=torch.uint8)]).features
        torch.stack([level.square().mean() for level in features]).sum().backward()
        gradients.append([p.grad for p in model.backbone.parameters()])
    assert all(torch.equal(left, right) for left, right in zip(*gradients, strict=True) if left is not None)


def test_checkpointed_activations_are_refused_where_batch_norm_trains() -> None:
    config = _config("base", "loop.checkpoint_activations=true", "stage.batch_norm=train")
    with pytest.raises(ConfigError, match="count batch statistics twice"):
        prepare_model(build_detector(config.detector, torch.eye(8)[:2]), config, Peers())


def test_a_record_of_an_earlier_version_gets_the_new_settings() -> None:
    config = _config("base")
    record: dict[str, Any] = {"config": to_json(config), "version": "0"}
    old = json.loads(json.dumps(record))
    del old["config"]["validation"]
    del old["config"]["loop"]["accumulate"]
    assert with_new_fields(old) == json.loads(json.dumps(record))
    del old["config"]["loop"]["steps"]  # has no default: left as it is, and refused later
    assert with_new_fields(old) == old


def _write_annotations(path: Path, box: list[int]) -> None:
    """One picture with one box of the first of two classes."""
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "bbox": box, "area": box[2] * box[3], "iscrowd": 0}
    payload = {
        "images": [{"id": 1, "file_name": "1.png", "width": 32, "height": 32}],
        "annotations": [annotation],
        "categories": [{"id": 1, "name": "mug", "role": "base"}, {"id": 2, "name": "kite", "role": "novel"}],
    }
    path.write_text(json.dumps(payload))


@pytest.fixture
def validated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, Any]]:
    """Evaluate once with given figures; what `best.json` holds then."""
    (tmp_path / "val").mkdir()
    _write_annotations(tmp_path / "val.json", [4, 4, 20, 20])
    model = build_detector(_config("base").detector, torch.eye(8)[:2])
    records = tuple({"name": n, "role": "base", "category_id": i} for i, n in enumerate("ab"))
    metadata = DetectorMetadata(stage="base", vocabulary=records, text_encoder="test")

    def evaluated(step: int, ap50: float, ap: float, **settings: Any) -> dict[str, Any]:
        monkeypatch.setattr(
            ovbridge.validation, "evaluate_model", lambda *a, **k: {"ap50": {"all": ap50}, "ap": {"all": ap}}
        )
        config = ValidationConfig(images="val", annotations="val.json", **settings)
        Validation(config, tmp_path, tmp_path, model, metadata, back_to_training=lambda: None)(step)
        best: dict[str, Any] = json.loads((tmp_path / "best.json").read_text())
        return best

    return evaluated


def test_the_best_is_chosen_anew_where_other_figures_are_compared(
    tmp_path: Path, validated: Callable[..., dict[str, Any]]
) -> None:
    assert validated(1, 50.0, 20.0)["step"] == 1
    assert validated(2, 40.0, 19.0, metric="ap.all")["step"] == 1  # worse by that metric too
    assert validated(3, 40.0, 21.0, metric="ap.all")["step"] == 3
    assert validated(4, 30.0, 21.0, metric="ap.all")["step"] == 3
    assert validated(5, 30.0, 10.0, metric="ap.all", protocol="coco")["step"] == 5
    _write_annotations(tmp_path / "val.json", [4, 4, 10, 10])
    assert validated(6, 30.0, 5.0, metric="ap.all", protocol="coco")["step"] == 6
    (tmp_path / "best.json").write_text("null")
    assert validated(7, 30.0, 1.0, metric="ap.all", protocol="coco")["step"] == 7


@pytest.mark.parametrize("metric", ["ap50.nvoel", "ap50.novel", "all"])  # no true box is of a novel class
def test_a_metric_that_the_annotations_do_not_give_is_refused_before_training(tmp_path: Path, metric: str) -> None:
    (tmp_path / "val").mkdir()
    _write_annotations(tmp_path / "val.json", [4, 4, 20, 20])
    config = ValidationConfig(images="val", annotations="val.json", metric=metric)
    with pytest.raises(ConfigError, match=f"'{metric}' is none of ap50.base, ap50.all, ap.base, ap.all"):
        check_validation(config, tmp_path)


def test_the_best_detector_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "val").mkdir()
    _write_annotations(tmp_path / "val.json", [4, 4, 20, 20])
    model = build_detector(_config("base").detector, torch.eye(8)[:2])
    records = tuple({"name": n, "role": "base", "category_id": i} for i, n in enumerate("ab"))
    metadata = DetectorMetadata(stage="base", vocabulary=records, text_encoder="test")
    values = iter([10.0, 30.0, 20.0])
    monkeypatch.setattr(
        ovbridge.validation, "evaluate_model", lambda *a, **k: {"ap50": {"all": next(values), "novel": None}, "ap": {}}
    )
    back: list[bool] = []
    config = ValidationConfig(images="val", annotations="val.json")
    validation = Validation(config, tmp_path, tmp_path, model, metadata, back_to_training=lambda: back.append(True))
    bias = model.rpn.objectness.bias
    assert bias is not None
    for step in (1, 2, 3):
        with torch.no_grad():
            bias.fill_(step)
        assert set(validation(step)) == {"ap50.all"}
    best = json.loads((tmp_path / "best.json").read_text())
    assert (best["step"], best["value"]) == (2, 30.0)
    kept, _ = load_detector(tmp_path / "best.safetensors")
    assert float(kept.rpn.objectness.bias.detach()[0]) == 2.0  # type: ignore[index]
    assert len(back) == 3
    with pytest.raises(ConfigError, match=r"validation\.images .*nowhere does not exist"):
        Validation(
            replace(config, images="nowhere"), tmp_path, tmp_path, model, metadata, back_to_training=lambda: None
        )


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_that_no_generator_takes_is_refused_where_batches_are_made(seed: int) -> None:
    inputs: Any = None  # not reached
    with pytest.raises(ConfigError, match=f"seed is {seed}: it must be from 0 to"):
        build_batches(inputs, DataConfig(), STAGES["base"], BatchConfig(), seed=seed)
