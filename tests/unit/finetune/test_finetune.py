"""Fine-tuning on a handful of pictures: what may change does, what may not stays bit for bit, forgetting is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn import functional as F

import ovbridge.finetune.run
import ovbridge.inference.detector
from ovbridge.cli.main import run as command_line
from ovbridge.detector import (
    DetectorMetadata,
    build_detector,
    load_detector,
    read_metadata,
    save_detector,
    world_r18_fpn,
)
from ovbridge.detector.boxes import pairwise_iou
from ovbridge.detector.rpn import BoxProposals
from ovbridge.finetune.anchored import FROZEN, HeadAnchor, boxes_anywhere, displacement, divergence, interpolate
from ovbridge.finetune.classes import UserClasses, merge_classes
from ovbridge.finetune.run import FinetuneConfig, ForgettingError, Holdout, finetune
from ovbridge.inference import Detector
from ovbridge.label_store import LabelledImage, LabelStore, Manifest
from ovbridge.structures import BoxLabels, RegionTargets
from ovbridge.vocabulary import TextBank, Vocabulary

OLD = ("mug", "kite", "sofa")
TEXT = "roi_head.classifier.text_KD"


class Encoder:
    """Old names as stored, any other a row of its own."""

    def embed_names(self, names: Any, templates: Any) -> TextBank:
        rows = torch.stack([torch.eye(8)[OLD.index(n)] if n in OLD else torch.eye(8)[5] + 0.1 for n in names])
        return TextBank(names=tuple(names), embeddings_KD=rows, encoder="test")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """detector.safetensors, photos/, mine.json (a new class "harp" with id 7, and "kite") and old.json."""
    config = world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8), out_stages=(3, 4))
    model = build_detector(config, torch.eye(8)[:3])
    records = tuple(
        {"name": n, "role": r, "category_id": i}
        for i, (n, r) in enumerate(zip(OLD, ("base", "base", "novel"), strict=True), 1)
    )
    metadata = DetectorMetadata(stage="rkd", vocabulary=records, text_encoder="test", extra={"test_size": [48, 80]})
    save_detector(tmp_path / "detector.safetensors", model, metadata)
    rng, photos = np.random.default_rng(0), tmp_path / "photos"
    photos.mkdir()
    images = []
    for i in range(4):
        height, width = ((48, 64), (64, 48))[i % 2]
        Image.fromarray(rng.integers(0, 255, (height, width, 3), dtype=np.uint8)).save(photos / f"{i}.png")
        images.append({"id": i + 1, "file_name": f"{i}.png", "height": height, "width": width})
    boxes = [{"id": i + 1, "image_id": i + 1, "category_id": (7, 9)[i % 2], "bbox": [5, 5, 30, 30]} for i in range(4)]
    mine = {
        "images": images,
        "annotations": boxes,
        "categories": [{"id": 7, "name": "harp"}, {"id": 9, "name": "kite"}],
    }
    (tmp_path / "mine.json").write_text(json.dumps(mine))
    old = [{"id": i + 1, "name": n, "role": records[i]["role"]} for i, n in enumerate(OLD)] + [
        {"id": 4, "name": "harp", "role": "base"}
    ]
    boxes = [{**b, "category_id": 1 + i % 4, "area": 900, "iscrowd": 0} for i, b in enumerate(boxes)]
    (tmp_path / "old.json").write_text(json.dumps({"images": images, "annotations": boxes, "categories": old}))
    monkeypatch.setattr(ovbridge.inference.detector, "_named_encoder", lambda name, wanted: Encoder())
    monkeypatch.setattr(ovbridge.finetune.run, "_label", _label)
    return tmp_path


def _label(classes: Any, images: Path, store: Path, config: FinetuneConfig) -> None:
    manifest = Manifest(
        table="regions", encoder="test", encoder_digest="0", embedding_dim=8, crop_rule="tight", proposer="truth",
        proposer_digest="0", proposer_trained_on="truth", queries=("all",), selection={},
    )  # fmt: skip
    targets = RegionTargets(
        boxes_xyxy=torch.tensor([[4.0, 4, 40, 40]]), embeddings=torch.ones(1, 8), scores=torch.ones(1)
    )
    keys = [image["file_name"] for image in classes.payload["images"]]
    LabelStore.create_or_open(store, manifest).append(
        "regions", [LabelledImage(image_key=k, labels=targets) for k in keys]
    )


def _run(folder: Path, out: str, holdout: Holdout | None = None, **settings: Any) -> dict[str, Any]:
    config = FinetuneConfig(**{"steps": 3, "batch": 2, **settings})
    return finetune(
        folder / "detector.safetensors",
        folder / "mine.json",
        folder / "photos",
        folder / out,
        config=config,
        holdout=holdout,
    )


def test_only_trunk_projection_and_the_given_rows_learn(folder: Path) -> None:
    figures = _run(folder, "out")
    assert (figures["new_classes"], figures["classes"]) == (["harp"], ["harp", "kite"])
    before, after = load_file(folder / "detector.safetensors"), load_file(folder / "out" / "detector.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if name != TEXT and not torch.equal(before[name], after[name])}
    assert changed
    assert all(name.startswith(("roi_head.trunk.", "roi_head.projection.")) for name in changed)
    assert not any(name.startswith(FROZEN) for name in changed)
    assert after[TEXT].shape == (4, 8)
    assert torch.equal(before[TEXT][[0, 2]], after[TEXT][[0, 2]])  # mug and sofa were not in the user's file
    assert not torch.equal(before[TEXT][1], after[TEXT][1])
    torch.testing.assert_close(after[TEXT].norm(dim=1), torch.ones(4))
    _, metadata = read_metadata(folder / "out" / "detector.safetensors")
    assert metadata.names == (*OLD, "harp")
    assert [record["role"] for record in metadata.vocabulary] == ["base", "base", "novel", "base"]
    losses = [json.loads(line)["losses"] for line in (folder / "out" / "log.jsonl").read_text().splitlines()]
    assert set(losses[-1]) == {"anchor", "name_anchor", "classification", "rkd_l1", "rkd_relation"}
    assert losses[-1]["anchor"] > 0
    assert losses[-1]["name_anchor"] > 0


def test_interpolation_lies_between_and_zero_is_the_checkpoint(folder: Path) -> None:
    before = load_file(folder / "detector.safetensors")
    none, half, tuned = (_tuned(folder, f"wise{wise}", wise=wise, steps=1) for wise in (0.0, 0.5, 1.0))
    assert all(torch.equal(before[name], none[name]) for name in before if name != TEXT)
    names_KD = Encoder().embed_names([*OLD, "harp"], ()).embeddings_KD
    torch.testing.assert_close(none[TEXT], F.normalize(names_KD, dim=1))
    moved = (tuned[TEXT] - none[TEXT]).norm(dim=1)
    assert moved.nonzero().flatten().tolist() == [1, 3]  # kite, which the checkpoint knows, and the new harp
    torch.testing.assert_close((half[TEXT] - none[TEXT]).norm(dim=1), moved / 2, rtol=0.02, atol=1e-6)
    layer = nn.Linear(1, 1)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    interpolate(layer, {"weight": torch.ones(1, 1), "bias": torch.zeros(1)}, 0.25)
    assert layer.weight.item() == 1.5


def _tuned(folder: Path, out: str, **settings: Any) -> dict[str, torch.Tensor]:
    _run(folder, out, **settings)
    return load_file(folder / out / "detector.safetensors")


def test_a_class_with_flat_boxes_alone_is_not_taught(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = json.loads((folder / "mine.json").read_text())
    mine["categories"].append({"id": 11, "name": "flat thing"})
    mine["annotations"].append({"id": 9, "image_id": 1, "category_id": 11, "bbox": [5, 5, 0, 0]})
    (folder / "mine.json").write_text(json.dumps(mine))
    classes = merge_classes(Detector.load(folder / "detector.safetensors", "cpu"), folder / "mine.json")
    assert (classes.given, classes.added) == (("harp", "kite"), ("harp",))
    assert "'flat thing' has no box with an area, so it is not taught" in " ".join(capsys.readouterr().err.split())


def test_images_that_are_named_by_their_address_alone_are_labelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "val2017").mkdir()
    (tmp_path / "val2017" / "1.png").touch()
    payload = {
        "images": [{"id": 1, "coco_url": "http://images.cocodataset.org/val2017/1.png"}],
        "annotations": [{"image_id": 1}],
    }
    bank = TextBank(names=("harp",), embeddings_KD=torch.ones(1, 8), encoder="test")
    vocabulary = Vocabulary(names=("harp",), roles=("base",), category_ids=(1,))
    classes = UserClasses(vocabulary=vocabulary, bank=bank, given=("harp",), added=("harp",), payload=payload)
    labelled: list[str] = []
    monkeypatch.setattr("ovbridge.teachers.clip.load_clip", lambda *given: None)
    monkeypatch.setattr("ovbridge.teachers.mavl.proposer.load_mavl", lambda *given: None)
    monkeypatch.setattr("ovbridge.labeling.labellers.RegionLabeller", lambda **given: None)
    monkeypatch.setattr("ovbridge.labeling.run.label_images", lambda store, root, keys, *_, **__: labelled.extend(keys))
    ovbridge.finetune.run._label(classes, tmp_path, tmp_path / "labels", FinetuneConfig())
    assert labelled == ["val2017/1.png"]


def test_the_anchor_holds_what_is_none_of_the_users_objects(folder: Path) -> None:
    model, _ = load_detector(folder / "detector.safetensors")
    anchor = HeadAnchor(model, kept_columns_K=torch.tensor([True, False, True]), regions=6)
    pixels = torch.randint(0, 255, (3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    encoded = model.encode([pixels])
    object_box = torch.tensor([[4.0, 4.0, 34.0, 34.0]])
    elsewhere = torch.tensor([[40.0, 10.0, 60.0, 40.0], [30.0, 30.0, 50.0, 46.0]])
    proposals = [BoxProposals(boxes_xyxy=torch.cat([object_box, elsewhere]), logits=torch.zeros(3))]
    labels = [BoxLabels(boxes_xyxy=object_box, class_ids=torch.tensor([1]))]
    compared = anchor._old_regions(proposals[0].boxes_xyxy, object_box, (48, 64), torch.Generator().manual_seed(0))
    assert float(pairwise_iou(object_box, compared).max()) < 0.5
    assert {tuple(box) for box in elsewhere.tolist()} <= {tuple(box) for box in compared.tolist()}

    def moved_and_renamed() -> tuple[float, float]:
        moved, renamed = anchor(model, encoded, proposals, labels, torch.Generator().manual_seed(0))
        return moved.item(), renamed.item()

    assert moved_and_renamed() == (0, 0)
    with torch.no_grad():
        model.roi_head.classifier.text_KD[1] *= -1  # the row that learns is no name to keep
    assert moved_and_renamed() == (0, 0)
    with torch.no_grad():
        next(model.roi_head.trunk.parameters()).mul_(1.5)
    assert min(moved_and_renamed()) > 0


def test_displacement_sums_elements_and_averages_regions() -> None:
    student, old = torch.tensor([[1.0, 2.0], [0.0, 0.0]]), torch.tensor([[0.0, 0.0], [0.0, 1.0]])
    assert displacement(student, old).item() == 2.0
    assert displacement(student[:0], old[:0]).item() == 0.0


def test_divergence_is_that_of_the_scores() -> None:
    old, new = torch.tensor([[0.0, 2.0], [-30.0, 1.0]]), torch.tensor([[1.0, 2.0], [-40.0, 1.0]])
    assert divergence(old, old).item() == 0
    p, q = old.double().sigmoid(), new.double().sigmoid()
    expected = (p * (p / q).log() + (1 - p) * ((1 - p) / (1 - q)).log()).sum() / 2
    torch.testing.assert_close(divergence(new, old), expected.float())
    assert divergence(new[:0], old[:0]).item() == 0


def test_boxes_anywhere_lie_in_the_image_and_have_area() -> None:
    boxes = boxes_anywhere(500, (40, 60), torch.Generator().manual_seed(0))
    assert bool((boxes >= 0).all())
    assert bool((boxes <= torch.tensor([60.0, 40.0, 60.0, 40.0])).all())
    assert bool((boxes[:, 2:] > boxes[:, :2]).all())
    assert len(boxes) > 450


def test_naive_changes_everything_and_has_no_distillation(folder: Path) -> None:
    _run(folder, "naive", naive=True)
    before, after = load_file(folder / "detector.safetensors"), load_file(folder / "naive" / "detector.safetensors")
    for part in ("backbone.", "rpn.", "roi_head.projection.", "roi_head.box_regressor."):
        assert any(not torch.equal(before[n], after[n]) for n in before if n.startswith(part)), part
    assert not (folder / "naive" / "labels").exists()


def test_forgetting_more_than_allowed_fails_and_keeps_the_detector_aside(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ap = iter([50.0, 46.5] * 2)

    def fake(model: object, metadata: DetectorMetadata, **settings: Any) -> dict[str, Any]:
        assert metadata.names == (*OLD, "harp")
        held = next(ap)
        per_class = {n: {"ap50": 10.0, "role": "base"} for n in ("mug", "kite")}
        return {
            "per_class": {**per_class, "sofa": {"ap50": held, "role": "novel"}, "harp": {"ap50": 3.0, "role": "base"}}
        }

    monkeypatch.setattr(ovbridge.finetune.run, "evaluate_model", fake)
    held = Holdout(annotations=folder / "old.json", images=folder / "photos", max_drop=2)
    with pytest.raises(ForgettingError, match=r"fell by 3\.5 points \(50\.0 to 46\.5\), allowed are 2"):
        _run(folder, "out", held)
    assert not (folder / "out" / "detector.safetensors").exists()
    record = json.loads((folder / "out" / "finetune.json").read_text())
    assert record["before"] == {
        "held_out": 50.0, "held_out_classes": 1, "base": 10.0, "mine": 6.5, "per_class": {"kite": 10.0, "harp": 3.0},
    }  # fmt: skip
    words = ["train", "finetune", "--data", "mine.json", "--images", "photos", "--checkpoint", "detector.safetensors"]
    words = [str(folder / word) if (folder / word).exists() else word for word in words]
    held_words = ["--holdout", str(folder / "old.json"), "--holdout-images", str(folder / "photos"), "--steps", "1"]
    out = ["--out", str(folder / "cli")]
    assert command_line([*words, *out, *held_words, "--max-drop", "2"]) == 2
    assert "error: held-out AP50 fell by 3.5 points" in capsys.readouterr().err


def test_held_out_figures_come_from_the_detector(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = Holdout(annotations=folder / "old.json", images=folder / "photos", max_drop=100)
    figures = _run(folder, "out", held, steps=1)
    assert set(figures["after"]["per_class"]) == {"kite", "harp"}
    assert figures["after"]["held_out_classes"] == 1
    assert (folder / "out" / "detector.safetensors").exists()
    again = _run(folder, "out", held, steps=1)  # the same call goes on where it ended
    assert again["after"] == figures["after"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--max-drop", "2"], "--max-drop needs --holdout"),
        (["--holdout", "old.json"], "go together"),
        (["--data", "none.json"], "none.json does not exist"),
        (["--wise", "2"], "share between 0"),
        (["--seed=-1"], "--seed is -1: give a whole number from 0"),
        (["--learning-rate", "nan"], "--learning-rate must be positive"),
        (["--anchor", "nan"], "--anchor, --name-anchor"),
        (["--holdout", "old.json", "--holdout-images", "photos", "--max-drop", "nan"], "--max-drop is not a number"),
        (["--name-anchor=-1"], "--name-anchor and --distillation must be at least 0"),
    ],
)
def test_mistakes_are_one_line(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: list[str], says: str
) -> None:
    monkeypatch.chdir(folder)
    given = ["--data", "mine.json", "--images", "photos", "--checkpoint", "detector.safetensors", "--out", "out"]
    assert command_line(["train", "finetune", *given, *words]) == 2
    captured = capsys.readouterr().err
    assert says in captured
    assert "Traceback" not in captured
