"""Training on drawn rectangles: it learns, repeats bit by bit, and survives a kill."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.errors import CheckpointError
from ovbridge.teachers.mavl import loop
from ovbridge.teachers.mavl.config import BackboneConfig, MavlConfig, TextConfig
from ovbridge.teachers.mavl.loop import MavlTrainConfig
from ovbridge.teachers.mavl.proposer import load_mavl
from ovbridge.teachers.mavl.quality import proposer_quality
from ovbridge.teachers.mavl.samples import SampleConfig
from ovbridge.teachers.mavl.train import train_mavl

TINY = MavlConfig(
    backbone=BackboneConfig(block="basic", blocks=(1, 1, 1, 1), widths=(8, 16, 16, 16), norm="batch"),
    text=TextConfig(vocabulary_size=40, hidden=16, layers=1, heads=2, feedforward=32, positions=20, dropout=0.0),
    d_model=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    fusion_layers=1,
    feedforward=32,
    levels=3,
    points=2,
    queries=16,
    token_positions=12,
    image_short_side=64,
    dropout=0.1,
)
SHORT = MavlTrainConfig(model=TINY, pretrain_steps=2, steps=6, batch_size=2, learning_rate=2e-3, checkpoint_seconds=0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("rectangles")
    random = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 13):
        pixels = np.full((64, 96, 3), 90, np.uint8)
        x, y, w, h = (int(v) for v in (random.integers(5, 50), random.integers(5, 25), *random.integers(20, 36, 2)))
        noun = int(random.integers(2))
        pixels[y : y + h, x : x + w] = (230, 40, 40) if noun else (40, 60, 230)
        Image.fromarray(pixels).save(folder / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "width": 96, "height": 64})
        annotations.append({"id": i, "image_id": i, "category_id": noun, "bbox": [x, y, w, h], "iscrowd": 0})
    categories = [{"id": 0, "name": "pool", "role": "novel"}, {"id": 1, "name": "brick", "role": "base"}]
    record = {"images": images, "annotations": annotations, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(record))
    return folder


def test_training_learns_to_find_rectangles(world: Path, tmp_path: Path) -> None:
    unzoomed = SampleConfig(zoom_rate=0.0)
    config = replace(SHORT, steps=80, batch_size=6, checkpoint_seconds=1000.0, samples=unzoomed)
    out = train_mavl(world / "instances.json", world, tmp_path / "m.safetensors", config)
    losses = [json.loads(line)["loss"] for line in out.with_suffix(".jsonl").read_text().splitlines()]
    assert len(losses) == 4
    assert losses[-1] < 0.7 * losses[0]
    assert not out.with_suffix(".resume").exists()
    quality = proposer_quality(load_mavl(out, torch.device("cpu")), world / "instances.json", world)
    assert quality["recall@5"]["all"] >= 75
    assert set(quality["every_noun_top1"]) == {"all", "base", "novel"}


def test_same_seed_same_bytes(world: Path, tmp_path: Path) -> None:
    files = [train_mavl(world / "instances.json", world, tmp_path / f"{n}.safetensors", SHORT) for n in "ab"]
    assert files[0].read_bytes() == files[1].read_bytes()
    other = train_mavl(world / "instances.json", world, tmp_path / "c.safetensors", replace(SHORT, seed=1))
    assert other.read_bytes() != files[0].read_bytes()


def test_a_killed_run_goes_on_where_it_stopped(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = train_mavl(world / "instances.json", world, tmp_path / "whole.safetensors", SHORT)
    step, calls = loop.train_step, []

    def dies_at_the_fourth(*args: object) -> dict[str, float]:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(*args)  # type: ignore[arg-type]

    out = tmp_path / "killed.safetensors"
    with monkeypatch.context() as patch:
        patch.setattr(loop, "train_step", dies_at_the_fourth)
        with pytest.raises(KeyboardInterrupt):
            train_mavl(world / "instances.json", world, out, SHORT)
    assert out.with_suffix(".resume").exists()
    assert not out.exists()
    with pytest.raises(CheckpointError, match="other settings"):
        train_mavl(world / "instances.json", world, out, replace(SHORT, learning_rate=1e-3))
    train_mavl(world / "instances.json", world, out, SHORT)
    assert out.read_bytes() == whole.read_bytes()


def test_excluded_names_reach_neither_texts_nor_record(world: Path, tmp_path: Path) -> None:
    out = train_mavl(
        world / "instances.json", world, tmp_path / "m.safetensors", replace(SHORT, steps=1), exclude_roles=("novel",)
    )
    teacher = load_mavl(out, torch.device("cpu"))
    assert "novel objects left out" in teacher.trained_on
    assert teacher.tokenizer.token_to_id("pool") is None
    assert teacher.tokenizer.token_to_id("brick") is not None


def test_init_learns_the_words_that_its_start_did_not_know(world: Path, tmp_path: Path) -> None:
    short = replace(SHORT, steps=1)
    first = train_mavl(world / "instances.json", world, tmp_path / "a.safetensors", short, exclude_roles=("novel",))
    second = train_mavl(world / "instances.json", world, tmp_path / "b.safetensors", short, init=first)
    before, after = (load_mavl(f, torch.device("cpu")).tokenizer.get_vocab() for f in (first, second))
    assert "pool" not in before
    assert after["pool"] < TINY.text.vocabulary_size
    assert {word: after[word] for word in before} == before


def test_init_continues_from_another_proposer(world: Path, tmp_path: Path) -> None:
    first = train_mavl(world / "instances.json", world, tmp_path / "a.safetensors", SHORT)
    frozen = replace(SHORT, steps=1, learning_rate=0.0, half=False)
    second = train_mavl(world / "instances.json", world, tmp_path / "b.safetensors", frozen, init=first)
    image = np.asarray(Image.open(world / "1.png"))
    a, b = (load_mavl(f, torch.device("cpu")) for f in (first, second))
    # Only the running statistics of the batch normalisation have moved.
    scores = [t.propose([image], [["all objects"]])[0][0].scores for t in (a, b)]
    torch.testing.assert_close(scores[0], scores[1], atol=0.05, rtol=0)
