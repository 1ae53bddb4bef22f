"""Backbone pretraining: what it looks at, and that a detector can start from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ovbridge.detector import world_r18_fpn
from ovbridge.errors import ConfigError
from ovbridge.training.pretrain import LabelledObjects, PretrainConfig, pretrain_backbone
from ovbridge.training.stages import STAGES
from ovbridge.training.start import starting_detector
from ovbridge.vocabulary import TextBank
from ovbridge.world.write import write_world

TINY = PretrainConfig(steps=2, batch_size=4)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, train=12, val=1, seed=3, image_labels_per_class=0)
    return out


def load(world: Path, *exclude: str) -> LabelledObjects:
    return LabelledObjects.load(
        world / "annotations" / "instances_train2017.json",
        world / "train2017",
        128,
        exclude,  # type: ignore[arg-type]
    )


def test_excluded_roles_are_not_shown(world: Path) -> None:
    everything, without_novel = load(world), load(world, "novel")
    assert 0 < len(without_novel.owners) < len(everything.owners)
    assert set(without_novel.class_ids) == set(range(without_novel.class_ids.max() + 1)), "classes are counted densely"


def test_excluding_everything_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match="no object outside"):
        load(world, "base", "novel", "unused")


def test_window_shows_the_object() -> None:
    scene = np.zeros((100, 150, 3), dtype=np.uint8)
    scene[40:60, 70:90] = 255
    objects = LabelledObjects(
        pictures=(Image.fromarray(scene),),
        owners=np.array([0]),
        boxes_xyxy=np.array([[70.0, 40.0, 90.0, 60.0]]),
        class_ids=np.array([0]),
    )
    rng = np.random.default_rng(0)
    for _ in range(20):
        window, (x1, y1, x2, y2) = objects.window(0, 64, rng)
        assert window.shape == (64, 64, 3)
        assert window.max() == 255
        rows, columns = np.nonzero(window[:, :, 0] > 127)
        shown = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
        slack = 2 + 0.13 * (shown[2] - shown[0])
        np.testing.assert_allclose([x1, y1, x2, y2], shown, atol=slack)


def test_equal_seeds_give_equal_weights_and_a_detector_starts_from_them(world: Path, tmp_path: Path) -> None:
    objects = load(world, "novel")
    config = world_r18_fpn(embedding_dim=16)
    first, second = (pretrain_backbone(config, objects, TINY) for _ in range(2))
    assert all(torch.equal(first[name], second[name]) for name in first)
    save_file(first, tmp_path / "backbone.safetensors")
    bank = TextBank(names=("a", "b"), embeddings_KD=torch.eye(2, 16), encoder="test")
    model = starting_detector(
        config, replace(STAGES["base"], batch_norm="train"), bank, tmp_path / "backbone.safetensors", seed=0
    )
    for name in ("backbone.body.stem.weight", "backbone.output.0.weight", "roi_head.trunk.layers.0.weight"):
        torch.testing.assert_close(model.state_dict()[name], first[name].float())


def test_it_goes_on_from_an_earlier_file(world: Path, tmp_path: Path) -> None:
    objects, config = load(world), world_r18_fpn(embedding_dim=16)
    first = pretrain_backbone(config, objects, TINY)
    save_file(first, tmp_path / "first.safetensors")
    still = replace(TINY, steps=1, learning_rate=0.0, init=str(tmp_path / "first.safetensors"))
    again = pretrain_backbone(config, objects, still)
    weights = [name for name in first if name.endswith(".weight")]
    assert len(weights) > 10
    for name in weights:
        torch.testing.assert_close(again[name], first[name])
