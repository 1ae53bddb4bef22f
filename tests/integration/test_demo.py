"""The whole demo, tiny: it ends, leaves what it promises, goes on after a stop, and refuses another run's folder."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from ovbridge.demo import run as demo_run
from ovbridge.demo.run import Teachers, run_demo
from ovbridge.demo.settings import DemoSettings
from ovbridge.errors import ConfigError
from ovbridge.structures import Proposals
from ovbridge.teachers.clip import ClipConfig, build_clip, load_clip, save_clip
from ovbridge.teachers.tokenizer import ByteBpeTokenizer

SETTINGS = DemoSettings(
    train_images=8,
    val_images=8,
    image_labels_per_class=1,
    overrides=("loop.steps=4", "loop.log_every=1", "loop.save_every=2", "batches.det=2", "batches.cls=2"),
)


class GridProposer:
    """Answers every query with the same four boxes of any picture."""

    name, trained_on, digest = "grid", "nothing", "0"

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        found = []
        for image, texts in zip(images, queries, strict=True):
            height, width = image.shape[:2]
            quarters = torch.tensor([[x, y, x + 0.5, y + 0.5] for x in (0, 0.5) for y in (0, 0.5)])
            boxes = quarters * torch.tensor([width, height, width, height])
            found.append([Proposals(boxes_xyxy=boxes, scores=torch.tensor([0.9, 0.8, 0.7, 0.6])) for _ in texts])
        return found


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> Teachers:
    config = ClipConfig(
        embed_dim=64, image_size=32, vision_layers=(1, 1, 1, 1), vision_width=8, text_width=32, text_layers=1
    )
    tokenizer = ByteBpeTokenizer.train(["a photo of a red mug", "a kite"], 300)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    torch.manual_seed(0)
    save_clip(path, build_clip(config, tokenizer.vocab_size), tokenizer, config, "two sentences")
    return Teachers(proposer=GridProposer(), clip=load_clip(str(path)))


def test_demo_runs_stops_and_goes_on(
    tmp_path: Path, teachers: Teachers, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "demo"
    train_run = demo_run.train_run

    def stopped_at_rkd(config, folder, **options):  # type: ignore[no-untyped-def]
        if config.stage.name == "rkd":
            raise KeyboardInterrupt
        return train_run(config, folder, **options)

    monkeypatch.setattr(demo_run, "train_run", stopped_at_rkd)
    with pytest.raises(KeyboardInterrupt):
        run_demo(out, SETTINGS, teachers=teachers)
    base = (out / "train/base/detector.safetensors").read_bytes()
    spent = json.loads((out / "steps.json").read_text())["train Base"]["seconds"]
    monkeypatch.setattr(demo_run, "train_run", train_run)

    results = run_demo(out, SETTINGS, teachers=teachers)

    assert (out / "train/base/detector.safetensors").read_bytes() == base
    assert results["steps"]["train Base"] == round(spent, 1)
    assert list(results["stages"]) == ["base", "rkd", "rkd_pis_wt"]
    for record in results["stages"].values():
        assert {"ap50", "ap", "per_class", "images", "checkpoint", "stage", "seed", "seconds"} <= record.keys()
        assert set(record["ap50"]) == {"base", "novel", "all"}
    assert json.loads((out / "results.json").read_text()) == results
    assert (out / "detector.safetensors").read_bytes() == (out / "train/rkd_pis_wt/detector.safetensors").read_bytes()
    page = (out / "report.html").read_text()
    for section in ("table", "examples", "proposals", "embeddings", "losses", "time", "methods"):
        assert f'id="{section}"' in page

    with pytest.raises(ConfigError, match="another demo run"):
        run_demo(out, DemoSettings(seed=5), teachers=teachers)
