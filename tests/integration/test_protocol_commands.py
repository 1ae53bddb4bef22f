"""prepare and evaluate on the real LVIS and COCO files, several protocols at once, strict refused where it must be."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from ovbridge.cli import main
from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn


def _json(capsys: pytest.CaptureFixture[str], *words: object) -> Any:
    assert main.run([str(w) for w in [*words, "--json"]]) == 0
    return json.loads(capsys.readouterr().out)


def test_prepare_and_score_real_lvis(shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = shared_data / "metadata" / "lvis_val_100.json"
    counts = _json(capsys, "prepare", "lvis-ovd", "--annotations", source, "--out", tmp_path / "ovd")
    truth = json.loads(source.read_text())
    rare = {c["id"] for c in truth["categories"] if c["frequency"] == "r"}
    removed = sum(a["category_id"] in rare for a in truth["annotations"])
    assert counts["known_counts"] == "sample"
    assert counts["train"] == {
        "images": 100,
        "annotations": 977,
        "kept_annotations": 977 - removed,
        "removed_annotations": removed,
        "images_without_box": counts["train"]["images_without_box"],
        "rare_classes": len(rare),
    }
    assert removed > 0
    found = [
        {"image_id": a["image_id"], "category_id": a["category_id"], "bbox": a["bbox"], "score": 0.5 + 0.4 * (k % 2)}
        for k, a in enumerate(truth["annotations"])
    ]
    (tmp_path / "found.json").write_text(json.dumps(found))
    words = ["evaluate", "--predictions", tmp_path / "found.json", "--annotations", source, "--iou-type", "bbox"]
    record = _json(capsys, *words, "--protocol", "ov-lvis", "fixed-AP", "--out", tmp_path / "results.json")
    assert list(record["protocols"]) == ["ov-lvis", "fixed-AP"]
    assert record["protocol"] == "ov-lvis"
    for name, one in record["protocols"].items():
        assert one["protocol"] == name
        assert one["ap"] == pytest.approx({"all": 100.0, "r": 100.0, "c": 100.0, "f": 100.0})
    assert json.loads((tmp_path / "results.json").read_text()) == record
    alone = _json(capsys, *words, "--protocol", "ov-lvis")
    assert "protocols" not in alone


def test_several_protocols_of_one_checkpoint_and_strict(
    shared_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = shared_data / "tiny_coco"
    names = ("mug", "dog")
    bank = torch.tensor([[1.0, 0.0, 0.0, 0.2], [-1.0, 0.1, 0.0, -0.2]])
    vocabulary = tuple(
        {"name": n, "role": r, "category_id": k + 1}
        for k, (n, r) in enumerate(zip(names, ("base", "novel"), strict=True))
    )
    truth = json.loads((coco / "annotations" / "instances_train2017.json").read_text())
    image = truth["images"][0]
    target = tmp_path / "val.json"
    target.write_text(
        json.dumps(
            {
                "images": [image],
                "categories": [{"id": 1, "name": "mug", "role": "base"}, {"id": 2, "name": "dog", "role": "novel"}],
                "annotations": [{"id": 1, "image_id": image["id"], "category_id": 2, "bbox": [10, 10, 90, 90]}],
            }
        )
    )
    checkpoint = tmp_path / "pis.safetensors"
    metadata = DetectorMetadata(
        stage="pis", vocabulary=vocabulary, text_encoder="none", extra={"test_size": [60, 80], "seed": 1}
    )
    save_detector(checkpoint, build_detector(world_r18_fpn(embedding_dim=4), bank), metadata)
    words = ["evaluate", "--checkpoint", checkpoint, "--images", coco / "train2017", "--annotations", target]
    record = _json(capsys, *words, "--device", "cpu", "--protocol", "ov-coco", "coco", "fixed-AP")
    assert record["protocols"]["fixed-AP"]["detections"] > record["protocols"]["ov-coco"]["detections"]
    assert record["protocols"]["ov-coco"]["detections"] <= 100
    assert record["leaks"]["verdict"] == "known vocabulary"
    assert record["limits"]["fixed-AP"]["max_detections"] == 1000
    assert main.run([str(w) for w in [*words, "--device", "cpu", "--protocol", "strict"]]) == 2
    assert "not known to be free of novel names" in capsys.readouterr().err
    assert main.run([str(w) for w in [*words, "--protocol", "ov-coco", "ov-lvis"]]) == 2
    assert "are for different files" in capsys.readouterr().err
    fused = _json(capsys, *words, "--device", "cpu", "--fuse", "objectness_novel=1", "--no-audit")
    assert fused["fusion"]["objectness_novel"] == 1.0
    assert "leaks" not in fused
    assert fused["precision"] == "fp32"
    half = [*words, "--device", "cpu", "--fuse", "objectness_novel=1", "--precision", "bf16"]
    assert main.run([str(w) for w in half]) == 2
    assert "--fuse computes in fp32: leave --precision bf16 out" in capsys.readouterr().err
