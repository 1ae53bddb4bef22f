"""Two processes with gloo: the gradients, samples and results of one, bit-identical resuming, more or fewer ranks."""

from __future__ import annotations

import faulthandler
import json
import multiprocessing
import os
import shutil
import signal
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from ovbridge.config_tree import apply_overrides
from ovbridge.detector import world_r18_fpn
from ovbridge.label_store import LabelledImage, LabelStore, Manifest, NamedBoxes
from ovbridge.recipes import recipe_named
from ovbridge.run_config import RunConfig
from ovbridge.structures import RegionTargets
from ovbridge.train_run import train_run
from ovbridge.training.interrupt import TrainingInterrupted
from ovbridge.training.logging import read_log
from ovbridge.training.start import starting_detector
from ovbridge.vocabulary import TextBank

SETTINGS = [
    "loop.steps=4", "loop.save_every=2", "loop.log_every=1", "loop.sampling=image", "loop.precision=fp32",
    "batches.det=4", "batches.cls=4",
    "batches.ratio=1,1", "batches.det_transform.short_sides=48", "batches.cls_transform.short_sides=48",
    "batches.group_by_shape=false", "optim.warmup_steps=0", "optim.optimizer=sgd", "optim.momentum=0",
    "optim.weight_decay=0", "optim.clip_norm=none", "optim.learning_rate=0.001", "losses.relation_over=all",
    "detector.roi.sampled_regions=16", "detector.roi.fully_connected.widths=32", "stage.init_from=nothing",
]  # fmt: skip
PATIENCE_SECONDS = 400
pytestmark = pytest.mark.slow  # five launches of two processes
PLACES = ["MASTER_ADDR", "MASTER_PORT", "RANK", "WORLD_SIZE", "LOCAL_RANK"]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 pictures of two shapes with boxes, regions and tags; some without any region."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    generator = torch.Generator().manual_seed(0)
    images, annotations, regions, tags = [], [], [], []
    for i in range(12):
        height, width = ((48, 64), (64, 48))[i % 2]
        name = f"{i}.png"
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(root / name)
        images.append({"id": i + 1, "file_name": name, "height": height, "width": width})
        annotations.append({"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "bbox": [6, 6, 30, 34]})
        count = i % 4
        boxes = torch.tensor([[4.0, 4, 40, 40], [10, 2, 30, 44], [0, 0, 20, 20]])[:count]
        embeddings = torch.randn(count, 8, generator=generator)
        regions.append((name, RegionTargets(boxes_xyxy=boxes, embeddings=embeddings, scores=torch.ones(count))))
        names = ("mug", "kite")[: 1 + i % 2]
        box = torch.tensor([[6.0, 6, 36, 40]]).repeat(len(names), 1)
        tags.append((name, NamedBoxes(names=names, boxes_xyxy=box, scores=torch.ones(len(names)))))
    categories = [{"id": 1, "name": "mug"}, {"id": 2, "name": "kite"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (root / "boxes.json").write_text(json.dumps(content))
    labelled = [{**image, "pos_category_ids": [1, 2][: 1 + i % 2]} for i, image in enumerate(images)]
    (root / "tags.json").write_text(json.dumps({**content, "images": labelled, "annotations": []}))
    origin = {
        "proposer": "truth", "proposer_digest": "0", "proposer_trained_on": "truth", "queries": ("all",),
        "selection": {},
    }  # fmt: skip
    embedder = {"encoder": "test", "encoder_digest": "0", "embedding_dim": 8, "crop_rule": "tight"}
    store = LabelStore.create_or_open(root / "labels", Manifest(table="regions", **embedder, **origin))
    store.append("regions", [LabelledImage(image_key=key, labels=labels) for key, labels in regions])
    store = LabelStore.create_or_open(root / "labels", Manifest(table="tags", **origin))
    store.append("tags", [LabelledImage(image_key=key, labels=labels) for key, labels in tags])
    np.save(root / "bank.npy", rng.normal(size=(2, 8)).astype(np.float32))
    return root


def _config(data: Path, *overrides: str, stage: str = "rkd_pis") -> RunConfig:
    config = recipe_named("world", stage)
    paths = replace(
        config.data, root=str(data), images=".", annotations="boxes.json", label_images=".", store="labels",
        label_annotations="tags.json", text_bank="bank.npy", text_encoder="test",
    )  # fmt: skip
    detector = world_r18_fpn(embedding_dim=8, channels=(8, 8, 16, 16), out_stages=(3, 4))
    return apply_overrides(replace(config, data=paths, detector=detector, init=""), [*SETTINGS, *overrides])


def _stop_at(step: int) -> None:
    """Make this process ask itself to stop while it computes the losses of a step."""
    import ovbridge.train_run

    build, calls = ovbridge.train_run.loss_function, [0]

    def watched(*arguments):  # type: ignore[no-untyped-def]
        losses = build(*arguments)

        def call(*inputs):  # type: ignore[no-untyped-def]
            calls[0] += 1
            if calls[0] == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return losses(*inputs)

        return call

    ovbridge.train_run.loss_function = watched  # type: ignore[assignment]


def _run_rank(config: RunConfig, out: Path, place: dict[str, str], stop_at: int) -> None:
    os.environ.update(place)
    # Processes that wait for each other for ever say where.
    faulthandler.dump_traceback_later(PATIENCE_SECONDS, exit=True)
    torch.set_num_threads(1)
    # Only one process is told to stop: the others must hear of it.
    if stop_at and place["RANK"] == "1":
        _stop_at(stop_at)
    try:
        train_run(config, out)
    except TrainingInterrupted:
        raise SystemExit(130) from None


def _on_ranks(count: int, config: RunConfig, out: Path, *, stop_at: int = 0) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ovbridge.train_run", "torch.utils.tensorboard", "torch.distributed.checkpoint"])
    processes = []
    for rank in range(count):
        place = dict(zip(PLACES, ("127.0.0.1", port, str(rank), str(count), str(rank)), strict=True))
        process = context.Process(target=_run_rank, args=(config, out, place, stop_at))
        process.start()
        processes.append(process)
    for process in processes:
        process.join(PATIENCE_SECONDS + 60)
    assert [process.exitcode for process in processes] == [130 if stop_at else 0] * count


def _change(before: dict[str, torch.Tensor], after: dict[str, torch.Tensor]) -> torch.Tensor:
    names = sorted(name for name in before if before[name].is_floating_point() and "text_KD" not in name)
    return torch.cat([(after[name] - before[name]).double().flatten() for name in names])


@pytest.mark.parametrize("stage", ["rkd_pis", "base"])
def test_two_ranks_learn_what_one_does(data: Path, tmp_path: Path, stage: str) -> None:
    """Plain SGD: the change of the weights is the gradient. "base" trains its batch norms."""
    norm = "stage.batch_norm=train" if stage == "base" else "stage.batch_norm=frozen"
    config = _config(data, norm, "loop.steps=2", stage=stage)
    one, two, parts = (tmp_path / name for name in ("one", "two", "parts"))
    train_run(config, one)
    _on_ranks(2, config, two)
    logs = {run: read_log(run / "log.jsonl") for run in (one, two)}
    for left, right in zip(logs[one], logs[two], strict=True):
        assert left["losses"] == pytest.approx(right["losses"], rel=1e-5)
        assert left["gradient_norm"] == pytest.approx(right["gradient_norm"], rel=1e-5)
    finals = {run: load_file(run / "detector.safetensors") for run in (one, two)}
    bank = TextBank.from_npy(data / "bank.npy", ("mug", "kite"), encoder="test")
    start = starting_detector(config.detector, config.stage, bank, None, seed=0).state_dict()
    change_one, change_two = (_change(start, finals[run]) for run in (one, two))
    assert float(change_one.norm()) > 0
    assert float((change_one - change_two).norm() / change_one.norm()) < 1e-5
    if stage == "rkd_pis":
        # One process in two passes: the relation matrices are then one a pass, so they are left out.
        without = ["losses.rkd_relation=0", "loop.steps=1"]
        train_run(_config(data, *without), tmp_path / "whole")
        train_run(_config(data, *without, "loop.accumulate=2"), parts)
        whole, passes = (_change(start, load_file(run / "detector.safetensors")) for run in (tmp_path / "whole", parts))
        assert float((whole - passes).norm() / whole.norm()) < 1e-5


def test_stopped_on_two_ranks_goes_on_bit_for_bit_and_on_one(data: Path, tmp_path: Path) -> None:
    config = _config(data, "optim.momentum=0.9", "loop.ema_decay=0.9")
    straight, broken, moved = (tmp_path / name for name in ("straight", "broken", "moved"))
    _on_ranks(2, config, straight)
    _on_ranks(2, config, broken, stop_at=2)
    (checkpoint,) = (broken / "checkpoints").iterdir()
    assert checkpoint.name == "step_00000002"
    assert len(list(checkpoint.glob("*.safetensors"))) == 2  # each rank wrote its share
    assert not list(checkpoint.glob("*.metadata"))  # and no pickle
    shutil.copytree(broken, moved)
    _on_ranks(2, config, broken)
    left, right = (load_file(run / "detector.safetensors") for run in (straight, broken))
    assert [name for name in left if not torch.equal(left[name], right[name])] == []
    lines = [[(x["step"], x["losses"]) for x in read_log(run / "log.jsonl")] for run in (straight, broken)]
    assert lines[0] == lines[1]
    train_run(config, moved)  # the same command, one process
    alone = load_file(moved / "detector.safetensors")
    for name, value in left.items():
        torch.testing.assert_close(alone[name], value, rtol=1e-4, atol=1e-5)
