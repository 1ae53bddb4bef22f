"""Training on files: stages in a row, bit-identical repeats, stopping and going on, on a handful of pictures."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import ovbridge.train_run
from ovbridge.cli.main import run as command_line
from ovbridge.config_tree import apply_overrides
from ovbridge.detector import read_metadata, world_r18_fpn
from ovbridge.errors import ConfigError
from ovbridge.label_store import LabelledImage, LabelStore, Manifest, NamedBoxes, save_text_bank
from ovbridge.recipes import recipe_named
from ovbridge.run_config import RunConfig
from ovbridge.structures import RegionTargets
from ovbridge.train_run import train_run
from ovbridge.training.interrupt import TrainingInterrupted
from ovbridge.training.logging import read_log
from ovbridge.training.prefetch import Batch
from ovbridge.vocabulary import TextBank

NAMES = ("mug", "kite", "sofa", "harp")
ROLES = ("base", "base", "novel", "unused")
BOX = [8, 6, 40, 30]  # xywh
SMALL = [
    "loop.steps=6", "loop.save_every=2", "loop.log_every=1", "batches.det=4", "batches.cls=4", "batches.ratio=1,1",
    "batches.det_transform.short_sides=48", "batches.cls_transform.short_sides=48", "optim.warmup_steps=0",
    "optim.learning_rate=0.002", "detector.roi.sampled_regions=16", "detector.roi.fully_connected.widths=32",
]  # fmt: skip


def _write_pictures(folder: Path, count: int, seed: int) -> list[dict[str, object]]:
    folder.mkdir(parents=True)
    rng = np.random.default_rng(seed)
    records = []
    for i in range(count):
        height, width = ((48, 64), (64, 48))[i % 2]
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(folder / f"{i}.png")
        records.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
    return records


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """8 pictures with boxes of base classes, 8 with one label each, a store with regions, tags and text."""
    root = tmp_path_factory.mktemp("data")
    categories = [
        {"id": k + 1, "name": name, "role": role} for k, (name, role) in enumerate(zip(NAMES, ROLES, strict=True))
    ]
    boxed, tagged = _write_pictures(root / "boxed", 8, 0), _write_pictures(root / "tagged", 8, 1)
    for record in tagged:
        record["file_name"] = f"t{record['file_name']}"
        (root / "tagged" / str(record["file_name"])[1:]).rename(root / "tagged" / str(record["file_name"]))
    annotations = [
        {"id": i + 1, "image_id": i + 1, "category_id": 1 + i % 2, "bbox": BOX, "area": 1200, "iscrowd": 0}
        for i in range(8)
    ]
    (root / "boxes.json").write_text(
        json.dumps({"images": boxed, "annotations": annotations, "categories": categories})
    )
    labelled = [{**record, "pos_category_ids": [1 + i % 3]} for i, record in enumerate(tagged)]
    (root / "tags.json").write_text(json.dumps({"images": labelled, "annotations": [], "categories": categories}))
    generator = torch.Generator().manual_seed(0)
    box = torch.tensor([[8.0, 6.0, 48.0, 36.0], [0.0, 0.0, 30.0, 30.0]])
    origin = {
        "proposer": "truth",
        "proposer_digest": "0",
        "proposer_trained_on": "truth",
        "queries": ("all",),
        "selection": {},
    }
    regions = LabelStore.create_or_open(
        root / "labels",
        Manifest(table="regions", encoder="test", encoder_digest="0", embedding_dim=8, crop_rule="tight", **origin),
    )
    regions.append(
        "regions",
        [
            LabelledImage(
                image_key=str(record["file_name"]),
                labels=RegionTargets(
                    boxes_xyxy=box, embeddings=torch.randn(2, 8, generator=generator), scores=torch.ones(2)
                ),
            )
            for record in [*boxed, *tagged]
        ],
    )
    tags = LabelStore.create_or_open(root / "labels", Manifest(table="tags", **origin))
    tags.append(
        "tags",
        [
            LabelledImage(
                image_key=str(record["file_name"]),
                labels=NamedBoxes(names=(NAMES[i % 3],), boxes_xyxy=box[:1], scores=torch.ones(1)),
            )
            for i, record in enumerate(tagged)
        ],
    )
    bank = TextBank(names=NAMES, embeddings_KD=torch.randn(4, 8, generator=generator), encoder="test")
    save_text_bank(root / "labels", bank)
    return root


def _config(data: Path, stage: str, init: Path | None = None, *overrides: str) -> RunConfig:
    config = recipe_named("world", stage)
    paths = replace(
        config.data,
        root=str(data),
        images="boxed",
        annotations="boxes.json",
        label_images="tagged",
        label_annotations="tags.json",
        store="labels",
    )
    detector = world_r18_fpn(
        embedding_dim=8, transfer=stage == "rkd_pis_wt", channels=(8, 8, 16, 16), out_stages=(3, 4)
    )
    config = replace(config, data=paths, detector=detector, init=str(init or ""))
    return apply_overrides(config, [*SMALL, *overrides])


def _assert_same_detector(left: Path, right: Path) -> None:
    # Not the bytes: safetensors writes its metadata in random order.
    assert read_metadata(left) == read_metadata(right)
    first, second = load_file(left), load_file(right)
    assert first.keys() == second.keys()
    assert [name for name in first if not torch.equal(first[name], second[name])] == []


@pytest.fixture(scope="module")
def stages(data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoints of base → rkd → rkd_pis_wt."""
    out = tmp_path_factory.mktemp("stages")
    base = train_run(_config(data, "base"), out / "base")
    rkd = train_run(_config(data, "rkd", base), out / "rkd")
    return {"base": base, "rkd": rkd, "rkd_pis_wt": train_run(_config(data, "rkd_pis_wt", rkd), out / "rkd_pis_wt")}


def test_each_stage_has_its_losses_and_says_what_it_is(stages: dict[str, Path]) -> None:
    supervised = {"rpn_objectness", "rpn_box", "classification", "box"}
    distilled = {"rkd_l1", "rkd_relation"}
    expected = {
        "base": supervised,
        "rkd": supervised | distilled,
        "rkd_pis_wt": supervised | distilled | {"image_label"},
    }
    for stage, path in stages.items():
        lines = read_log(path.parent / "log.jsonl")
        assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
        assert set().union(*(line["losses"] for line in lines)) == expected[stage]
        assert all(set(line["losses"]).isdisjoint(supervised) for line in lines if "image_label" in line["losses"])
        _, metadata = read_metadata(path)
        assert (metadata.stage, metadata.names, metadata.text_encoder) == (stage, NAMES, "test")
        assert metadata.recipe == f"world_{stage}"
    assert read_metadata(stages["rkd"])[1].extra["teachers"]["regions"]["proposer_trained_on"] == "truth"


def test_the_transferred_stage_keeps_the_distilled_projection_bit_for_bit(stages: dict[str, Path]) -> None:
    rkd, transferred, base = (load_file(stages[stage]) for stage in ("rkd", "rkd_pis_wt", "base"))
    for name in ("weight", "bias"):
        linear = f"roi_head.projection.linear.{name}"
        assert torch.equal(rkd[linear], transferred[linear])
        assert not torch.equal(base[linear], rkd[linear])
    running = [name for name in base if name.endswith("running_mean")]
    assert running
    assert all(torch.equal(base[name], transferred[name]) for name in running)
    trunk = next(name for name in base if name.startswith("roi_head.trunk") and name.endswith("weight"))
    assert not torch.equal(rkd[trunk], transferred[trunk])


def test_the_same_seed_gives_the_same_bits_and_another_does_not(
    data: Path, stages: dict[str, Path], tmp_path: Path
) -> None:
    again = train_run(_config(data, "rkd_pis_wt", stages["rkd"]), tmp_path / "again")
    _assert_same_detector(again, stages["rkd_pis_wt"])
    other = train_run(_config(data, "rkd_pis_wt", stages["rkd"], "seed=1"), tmp_path / "other")
    first, second = load_file(again), load_file(other)
    name = "roi_head.projection.transfer2.weight"
    assert not torch.equal(first[name], second[name])


def test_stopped_and_resumed_gives_the_same_bits_and_samples(
    data: Path, stages: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build = ovbridge.train_run.loss_function
    seen: list[list[int]] = []
    stop_at = 3

    def watched(*arguments: object) -> Callable[..., dict[str, Tensor]]:
        losses = build(*arguments)  # type: ignore[arg-type]

        def call(model: nn.Module, batch: Batch, generator: torch.Generator) -> dict[str, Tensor]:
            seen.append([image.image_id for image in batch.images])
            if len(seen) == stop_at:
                os.kill(os.getpid(), signal.SIGINT)
            return losses(model, batch, generator)

        return call

    monkeypatch.setattr(ovbridge.train_run, "loss_function", watched)
    config = _config(data, "rkd_pis_wt", stages["rkd"])
    with pytest.raises(TrainingInterrupted, match="stopped at step 3 of 6"):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run" / "detector.safetensors").exists()
    resumed = train_run(config, tmp_path / "run")
    _assert_same_detector(resumed, stages["rkd_pis_wt"])
    stop_at, in_parts = 0, list(seen)
    seen.clear()
    train_run(config, tmp_path / "straight")
    assert in_parts == seen
    losses = [[line["losses"] for line in read_log(tmp_path / run / "log.jsonl")] for run in ("run", "straight")]
    assert losses[0] == losses[1]


def test_a_finished_run_is_not_repeated(data: Path, stages: dict[str, Path]) -> None:
    before = stages["base"].stat().st_mtime_ns
    assert train_run(_config(data, "base"), stages["base"].parent) == stages["base"]
    assert stages["base"].stat().st_mtime_ns == before


def test_another_run_or_class_order_is_refused(data: Path, stages: dict[str, Path], tmp_path: Path) -> None:
    before = stages["base"].read_bytes()
    with pytest.raises(ConfigError, match=r"another run.*config\.optim\.learning_rate: 0\.1, not 0\.002"):
        train_run(_config(data, "base", None, "optim.learning_rate=0.1"), stages["base"].parent)
    payload = json.loads((data / "boxes.json").read_text())
    for category, new_id in zip(payload["categories"], (2, 1, 3, 4), strict=True):
        category["id"] = new_id
    permuted = tmp_path / "permuted.json"
    permuted.write_text(json.dumps(payload))
    with pytest.raises(ConfigError, match=r"inputs\.vocabulary\[0\]\.name: \"kite\", not \"mug\""):
        train_run(_config(data, "base", None, f"data.annotations={permuted}"), stages["base"].parent)
    assert stages["base"].read_bytes() == before


def _train(data: Path, *words: str) -> int:
    paths = ["data.images=boxed", "data.annotations=boxes.json", "data.label_images=tagged"]
    return command_line(
        ["train", *words, "--data", str(data), "--store", str(data / "labels"), "--set", *paths, *SMALL]
    )


def test_dry_run_shows_everything_and_writes_nothing(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert _train(data, "world_base", "--out", str(tmp_path / "run"), "--dry-run") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["images"] == {"det": 8}
    assert plan["classes"] == {"base": 2, "novel": 1, "unused": 1}
    assert plan["config"]["loop"]["steps"] == 6
    assert all(found["exists"] for found in plan["inputs"].values())
    assert not (tmp_path / "run").exists()


def test_dry_run_needs_no_folder_and_says_which_inputs_exist(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "train2017").mkdir()
    assert command_line(["train", "coco_rkd_pis_wt", "--dry-run"]) == 2
    shown = capsys.readouterr()
    resolved = json.loads(shown.out)
    assert resolved["config"]["loop"]["steps"] == 90_000
    assert resolved["config"]["optim"]["learning_rate"] == 0.02
    assert {field for field, found in resolved["inputs"].items() if found["exists"]} == {
        "data.images",
        "data.label_images",
    }
    assert set(resolved["inputs"]) > {"data.annotations", "data.label_annotations", "data.store", "init"}
    assert "data.annotations" in shown.err
    assert "Traceback" not in shown.err
    assert command_line(["train", "coco_rkd_pis_wt"]) == 2
    assert "--out" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("world_bse",), "no stage 'bse'"),
        (("world_rkd",), "give it with --init"),
        (("world_pis",), "data.label_annotations"),
        (("world_base", "--seed", "x"), "seed"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_2(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: tuple[str, ...], says: str
) -> None:
    assert _train(data, *words, "--out", str(tmp_path / "run")) == 2
    message = capsys.readouterr().err
    assert says in message
    assert "Traceback" not in message
    assert not (tmp_path / "run" / "detector.safetensors").exists()


def test_missing_regions_are_named_before_the_first_step(
    data: Path, stages: dict[str, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    payload = json.loads((data / "boxes.json").read_text())
    payload["images"][0]["file_name"] = "unlabelled.png"
    annotations = tmp_path / "more.json"
    annotations.write_text(json.dumps(payload))
    config = _config(data, "rkd", stages["base"], f"data.annotations={annotations}")
    with pytest.raises(Exception, match=r"no regions of 1 of the 8 training images \(first: unlabelled\.png\)"):
        train_run(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
