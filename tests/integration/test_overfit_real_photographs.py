"""Eight real photographs, learnt by heart: boxes, transforms, losses and evaluation must agree on real data."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovbridge.cli.main import run as command_line
from ovbridge.config_tree import apply_overrides
from ovbridge.data.ovd_files import TRAIN_FILE, write_coco_ovd
from ovbridge.recipes import recipe_named
from ovbridge.train_run import train_run

PHOTOGRAPHS = 8
MOST_BOXES = 8
"""Photographs with more base boxes than this are left out: their smallest objects are a few pixels at this size."""
SETTINGS = (
    "loop.steps=260", "loop.save_every=1000", "loop.log_every=20", "batches.det=8",
    "batches.det_transform.short_sides=160", "batches.det_transform.max_long_side=214",
    "optim.learning_rate=0.001", "test_size=160,214", "detector.rpn.anchor_sizes=[[24],[64],[144]]",
)  # fmt: skip


def _a_few(annotations: Path, out: Path) -> None:
    record = json.loads(annotations.read_text())
    boxes: dict[int, int] = {}
    for annotation in record["annotations"]:
        boxes[annotation["image_id"]] = boxes.get(annotation["image_id"], 0) + 1
    chosen = sorted(image for image, count in boxes.items() if count <= MOST_BOXES)[:PHOTOGRAPHS]
    record["images"] = [image for image in record["images"] if image["id"] in chosen]
    record["annotations"] = [a for a in record["annotations"] if a["image_id"] in chosen]
    assert len(record["images"]) == PHOTOGRAPHS
    out.write_text(json.dumps(record))


@pytest.mark.slow
def test_photographs_are_learnt_by_heart(shared_data: Path, tmp_path: Path) -> None:
    root = shared_data / "tiny_coco"
    write_coco_ovd(root / "annotations", tmp_path)
    few = tmp_path / "few.json"
    _a_few(tmp_path / TRAIN_FILE, few)
    data = (
        f"data.images={root / 'train2017'}",
        f"data.annotations={few}",
        f"data.text_bank={shared_data / 'embeddings' / 'coco_clip_a+photo+cname.npy'}",
        "data.text_encoder=open_clip:ViT-B-32-quickgelu/openai",
    )
    train_run(apply_overrides(recipe_named("world_base", None), (*SETTINGS, *data)), tmp_path / "run")
    scored = command_line(
        [
            *("evaluate", "--checkpoint", str(tmp_path / "run" / "detector.safetensors")),
            *("--images", str(root / "train2017"), "--annotations", str(few)),
            *("--protocol", "ov-coco", "--out", str(tmp_path / "results.json")),
        ]
    )
    assert scored == 0
    assert json.loads((tmp_path / "results.json").read_text())["ap50"]["base"] > 80
