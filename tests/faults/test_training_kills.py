"""SIGKILL at random moments, inside saving too: every restart goes on, and the end is bit for bit as if undisturbed."""

from __future__ import annotations

import json
import multiprocessing
import random
import time
from dataclasses import replace
from multiprocessing.context import ForkServerProcess
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ovbridge.config_tree import apply_overrides
from ovbridge.detector import read_metadata, world_r18_fpn
from ovbridge.errors import ConfigError
from ovbridge.recipes import recipe_named
from ovbridge.run_config import RunConfig
from ovbridge.train_run import is_finished, plan_run, train_run
from ovbridge.training.checkpoint import complete_checkpoints
from ovbridge.training.logging import read_log

SAVE_EVERY = 2


def _config(root: Path, steps: int) -> RunConfig:
    config = recipe_named("world_base")
    data = replace(config.data, root=str(root), images=".", annotations="boxes.json", text_bank="bank.npy")
    detector = world_r18_fpn(embedding_dim=4, channels=(8, 8, 8, 8), out_stages=(3,))
    return apply_overrides(
        replace(config, data=data, detector=detector, init=""),
        [
            f"loop.steps={steps}", f"loop.save_every={SAVE_EVERY}", "loop.log_every=1", "batches.det=2",
            "batches.det_transform.short_sides=32", "detector.roi.fully_connected.widths=16",
            "detector.roi.sampled_regions=8",
        ],
    )  # fmt: skip


def _write_data(root: Path) -> None:
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(1, 7):
        Image.fromarray(rng.integers(0, 255, (32, 40, 3), dtype=np.uint8)).save(root / f"{i}.png")
        images.append({"id": i, "file_name": f"{i}.png", "height": 32, "width": 40})
        annotations.append({"id": i, "image_id": i, "category_id": 1 + i % 2, "bbox": [4, 4, 20, 20], "iscrowd": 0})
    categories = [{"id": 1, "name": "mug"}, {"id": 2, "name": "kite"}]
    text = json.dumps({"images": images, "annotations": annotations, "categories": categories})
    (root / "boxes.json").write_text(text)
    np.save(root / "bank.npy", rng.normal(size=(2, 4)).astype(np.float32))


def _assert_same_detector(left: Path, right: Path) -> None:
    # Not the bytes: safetensors writes its metadata in random order.
    assert read_metadata(left) == read_metadata(right)
    first, second = load_file(left), load_file(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


def _start(config: RunConfig, out: Path) -> ForkServerProcess:
    # A fork server imports torch once for all of them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ovbridge.train_run", "torch.utils.tensorboard"])
    process = context.Process(target=train_run, args=(config, out))
    process.start()
    return process


def _finish(config: RunConfig, out: Path) -> None:
    process = _start(config, out)
    process.join(300)
    assert process.exitcode == 0


def _steps_done(out: Path) -> int:
    log = out / "log.jsonl"
    return max((line["step"] for line in read_log(log)), default=0) if log.exists() else 0


def _newest_saved(out: Path) -> int:
    return max((int(path.name.removeprefix("step_")) for path in complete_checkpoints(out / "checkpoints")), default=0)


def _kill_often(root: Path, *, kills: int, seed: int = 0) -> None:
    _write_data(root)
    # More steps than the kills can fall behind, so that no run ends before its kill on however fast a machine.
    config = _config(root, steps=12 * kills)
    rng = random.Random(seed)
    out, saved = root / "killed", 0
    for _ in range(kills):
        # Up to three steps after what is saved, and a moment more: kills fall on start-up, steps and saves alike.
        process, target = _start(config, out), saved + rng.randint(0, 3)
        while process.is_alive() and _steps_done(out) < target:
            time.sleep(0.002)
        late = time.monotonic() + rng.uniform(0, 0.15)
        while time.monotonic() < late and _steps_done(out) < target + 3:
            time.sleep(0.002)
        assert process.exitcode is None
        process.kill()
        process.join()
        assert _newest_saved(out) >= max(saved, _steps_done(out) - SAVE_EVERY)
        saved = _newest_saved(out)
    _finish(config, out)
    _finish(config, root / "straight")
    _assert_same_detector(root / "straight" / "detector.safetensors", out / "detector.safetensors")
    straight, killed = (
        [(line["step"], line["losses"]) for line in read_log(folder / "log.jsonl")]
        for folder in (root / "straight", out)
    )
    assert straight == killed


def test_a_few_kills_lose_nothing(tmp_path: Path) -> None:
    _kill_often(tmp_path, kills=3)


def test_a_damaged_result_is_made_again(tmp_path: Path) -> None:
    _write_data(tmp_path)
    config, out = _config(tmp_path, steps=1), tmp_path / "run"
    result = train_run(config, out)
    whole = result.rename(tmp_path / "whole.safetensors")
    result.write_bytes(b"xx")
    assert not is_finished(out)
    _assert_same_detector(train_run(config, out), whole)
    assert is_finished(out)


def test_a_detector_without_anything_to_learn_is_refused_before_its_memory_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _write_data(tmp_path)
    monkeypatch.setattr("ovbridge.train_run.print_memory_line", lambda *a, **k: pytest.fail("measured"))
    config = apply_overrides(_config(tmp_path, steps=1), ["stage.frozen=backbone,rpn,roi_head"])
    for start in (plan_run, train_run):
        with pytest.raises(ConfigError, match=r"shorten stage\.frozen"):
            start(config, tmp_path / "run")


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(5))
def test_fifty_kills_lose_nothing(tmp_path: Path, seed: int) -> None:
    _kill_often(tmp_path, kills=10, seed=seed)
