"""Backbone pretraining: what it looks at, and that a detector can start from it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import save_file
from torchvision.ops import box_iou

from ovbridge.detector import world_r18_fpn
from ovbridge.errors import ConfigError
from ovbridge.training.pretrain import LabelledObjects, PretrainConfig, backbone, pretrain_backbone
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
        exclude_roles=exclude,  # type: ignore[arg-type]
    )


def test_excluded_roles_are_not_shown(world: Path) -> None:
    everything, without_novel = load(world), load(world, "novel")
    assert 0 < len(without_novel.owners) < len(everything.owners)
    assert set(without_novel.class_ids) == set(range(without_novel.class_ids.max() + 1)), "classes are counted densely"


def test_excluding_everything_is_refused(world: Path) -> None:
    with pytest.raises(ConfigError, match="no object outside"):
        load(world, "base", "novel", "unused")


def one_object(box: list[float], *, is_boxed: bool) -> LabelledObjects:
    scene = np.zeros((100, 150, 3), dtype=np.uint8)
    x1, y1, x2, y2 = (int(v) for v in box)
    scene[y1:y2, x1:x2] = 255
    return LabelledObjects(
        pictures=(Image.fromarray(scene),),
        owners=np.array([0]),
        boxes_xyxy=np.array([box]),
        class_ids=np.array([0]),
        is_boxed=np.array([is_boxed]),
    )


def iou(first: np.ndarray, second: np.ndarray) -> float:
    return float(box_iou(torch.from_numpy(first)[None], torch.from_numpy(second)[None]))


def test_window_shows_the_object_where_it_says() -> None:
    objects, rng = one_object([70.0, 40.0, 90.0, 60.0], is_boxed=True), np.random.default_rng(0)
    for _ in range(50):
        window = objects.window(0, 64, rng)
        assert window.pixels.shape == (64, 64, 3)
        rows, columns = np.nonzero(window.pixels[:, :, 0] > 127)
        shown = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1], dtype=np.float64)
        np.testing.assert_allclose(window.truth, shown, atol=2)
        assert iou(window.region, window.truth) > 0.4, "a proposal that was found"
        assert iou(window.missed, window.truth) < 0.4, "and one that was not"
        assert (window.missed[2:] > window.missed[:2]).all()


def test_an_object_with_a_label_only_is_a_photograph_whose_frame_tells_no_box() -> None:
    objects, rng = one_object([70.0, 40.0, 90.0, 60.0], is_boxed=False), np.random.default_rng(0)
    slack, sizes = [], []
    for _ in range(50):
        window = objects.window(0, 64, rng)
        left, top, right, bottom = (int(v) for v in window.truth)
        inside = window.pixels[top:bottom, left:right, 0] > 127
        assert inside.any(), "the object is on its photograph"
        assert iou(window.region, window.truth) > 0.6
        rows, columns = np.nonzero(inside)
        slack.append([columns.min(), rows.min(), right - left - 1 - columns.max(), bottom - top - 1 - rows.max()])
        sizes.append(right - left)
    assert np.std(slack, axis=0).min() > 1, "the object stands anywhere in the frame"
    assert max(sizes) > 1.8 * min(sizes), "photographs are of many sizes"


def test_labels_alone_train_too(world: Path) -> None:
    everything = LabelledObjects.load(
        world / "annotations" / "instances_train2017.json",
        world / "train2017",
        128,
        label_only_roles=("base", "novel", "unused"),
    )
    assert not everything.is_boxed.any()
    tensors = pretrain_backbone(world_r18_fpn(embedding_dim=16), everything, TINY)
    assert all(torch.isfinite(value.float()).all() for value in tensors.values())


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


def test_boxes_of_objects_with_a_label_only_steer_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def recorded(truth: np.ndarray, objects: np.ndarray, side: int, rng: np.random.Generator) -> np.ndarray:
        seen.append(len(objects))
        return truth

    monkeypatch.setattr("ovbridge.training.pretrain._missed", recorded)
    two = LabelledObjects(
        pictures=(Image.fromarray(np.zeros((100, 150, 3), dtype=np.uint8)),),
        owners=np.array([0, 0]),
        boxes_xyxy=np.array([[10.0, 10.0, 40.0, 40.0], [60.0, 10.0, 90.0, 40.0]]),
        class_ids=np.array([0, 1]),
        is_boxed=np.array([True, False]),
    )
    two.window(0, 64, np.random.default_rng(0))
    assert seen == [1], "its own box, not its neighbour's"


def test_a_backbone_says_what_its_start_had_seen(world: Path, tmp_path: Path) -> None:
    first, second = tmp_path / "first.safetensors", tmp_path / "second.safetensors"
    backbone(world, first, steps=1)
    backbone(world, second, steps=1, init=str(first), exclude_roles=("novel",), label_only_roles=())
    with safe_open(second, framework="pt") as file:
        said = file.metadata()["trained_on"]
    assert "without novel names; before that: " in said
    assert said.endswith("novel names included")
