"""`ovbridge convert` on good, damaged, foreign and hostile files."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ovbridge.cli.convert import convert
from ovbridge.detector import coco_r50_c4, load_detector, lvis_r50_fpn
from ovbridge.detector.build import empty_detector
from ovbridge.detector.checkpoint_map import FREQUENCY, TEXT, map_official, official_name
from ovbridge.detector.config import DetectorConfig
from ovbridge.detector.pretrained import read_backbone_header
from ovbridge.errors import CheckpointError, ConfigError, OVBridgeError, VocabularyError
from ovbridge.teachers.mavl import weights
from ovbridge.teachers.mavl.config import mavl_full
from ovbridge.vocabulary.coco_names import COCO_OVD


def official(config: DetectorConfig, classes: int) -> dict[str, Tensor]:
    """Official names and shapes; each tensor is one number, so that the file stays small."""
    model = empty_detector(config, classes)
    tensors = {
        official_name(name, config): torch.tensor(0.25).expand(value.shape)
        for name, value in model.state_dict().items()
    }
    bank = torch.nn.functional.normalize(torch.randn(512, classes, generator=torch.Generator().manual_seed(0)), dim=0)
    tensors[TEXT] = torch.cat([bank, torch.zeros(512, 1)], dim=1)
    tensors[FREQUENCY] = torch.tensor([float(role == "base") for role in COCO_OVD.roles]) if classes == 80 else None
    return {name: value for name, value in tensors.items() if value is not None}


def write(path: Path, content: Any) -> Path:
    torch.save(content, path)
    return path


def test_coco_weight_transfer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = official(coco_r50_c4(transfer=True), 80)
    extra = {"pixel_mean": torch.zeros(3, 1, 1), "somewhere.new": torch.zeros(1)}
    content = {"model": tensors | extra, "iteration": 89999, "optimizer": {"state": {}, "param_groups": []}}
    target = tmp_path / "coco.safetensors"
    convert(write(tmp_path / "in.pth", content), target, json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["projection"]) == ("coco_r50_c4", "weight transfer")
    assert report["classes"] == {"base": 48, "novel": 17, "unused": 15}
    assert report["tensors"]["used"] == len(tensors) - 1
    assert set(report["tensors"]["reported"]) == {"pixel_mean", "somewhere.new", FREQUENCY}
    model, metadata = load_detector(target)
    assert metadata.names == COCO_OVD.names
    assert metadata.stage == "rkd_pis_wt"
    assert torch.equal(model.roi_head.classifier.text_KD, tensors[TEXT][:, :80].T)
    assert not model.backbone.stem.weight.requires_grad
    assert not model.roi_head.projection.linear.weight.requires_grad
    convert(tmp_path / "in.pth", target)
    assert "written to" in capsys.readouterr().out


def test_lvis_linear(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = official(lvis_r50_fpn(), 1203)
    convert(write(tmp_path / "in.pth", {"model": tensors}), tmp_path / "lvis.safetensors", json=True)
    report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["projection"]) == ("lvis_r50_fpn", "linear")
    assert report["classes"] == {"base": 866, "novel": 337, "unused": 0}
    assert report["tensors"] == {"used": len(tensors), "reported": {}}
    model, metadata = load_detector(tmp_path / "lvis.safetensors")
    assert metadata.names[:2] == ("aerosol_can", "air_conditioner")
    assert model.mask_head is not None
    assert model.roi_head.classifier.bias is not None


def test_another_vocabulary_needs_its_names(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = write(tmp_path / "in.pth", official(coco_r50_c4(), 3))
    target = tmp_path / "out.safetensors"
    with pytest.raises(VocabularyError, match="3 classes: give their names"):
        convert(source, target)
    names = tmp_path / "names.txt"
    names.write_text("red mug\nkite\n")
    with pytest.raises(VocabularyError, match="has 2 names, the classifier 3"):
        convert(source, target, names=names)
    names.write_text("red mug\nkite\nowl\n")
    convert(source, target, names=names)
    assert load_detector(target)[1].names == ("red mug", "kite", "owl")
    capsys.readouterr()


class Hostile:
    """Unpickling it creates a file."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.witness,))


@pytest.mark.parametrize("form", ["torch", "plain pickle"])
def test_a_hostile_file_is_refused_and_executes_nothing(tmp_path: Path, form: str) -> None:
    witness, source = tmp_path / "witness", tmp_path / "in.pth"
    content = {"model": {"x": torch.zeros(1)}, "payload": Hostile(witness)}
    if form == "torch":
        write(source, content)
    else:
        source.write_bytes(pickle.dumps({"payload": Hostile(witness)}))
    with pytest.raises(CheckpointError, match="nothing in it was executed") as caught:
        convert(source, tmp_path / "out.safetensors")
    assert "\n" not in str(caught.value)
    assert not witness.exists()
    assert not (tmp_path / "out.safetensors").exists()


def test_truncated_files(tmp_path: Path) -> None:
    source = write(tmp_path / "in.pth", official(coco_r50_c4(), 80))
    whole = source.read_bytes()
    for length in (0, 3, 1000, len(whole) // 2, len(whole) - 30):
        source.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"truncated|no PyTorch file") as caught:
            convert(source, tmp_path / "out.safetensors")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {"backbone.stem.conv1.weight": torch.zeros(1)}}, "not a detector of the paper"),
        (torch.zeros(3), "no table of tensors"),
        ({"model": {"x": 3}}, "no table of tensors"),
    ],
)
def test_foreign_files(tmp_path: Path, content: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        convert(write(tmp_path / "in.pth", content), tmp_path / "out.safetensors")


LINEAR, FIRST = (f"roi_heads.box_predictor.cls_score.{layer}.weight" for layer in ("linear", "fc1"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FIRST: torch.zeros(8, 8)}, r"lacks .*fc3\.weight"),
        ({TEXT: torch.zeros(8)}, r"zs_weight is \(8,\) instead of a matrix"),
        ({TEXT: torch.zeros(8, 0)}, r"zs_weight is \(8, 0\)"),
        ({LINEAR: torch.tensor(1.0)}, r"linear\.weight is \(\)"),
    ],
)
def test_detectors_with_damaged_heads_are_one_line(change: dict[str, Tensor], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        map_official({LINEAR: torch.zeros(8, 2048), TEXT: torch.zeros(8, 81)} | change)


def test_other_faults_are_one_line(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(tmp_path / "nowhere.pth", tmp_path / "out.safetensors")
    (tmp_path / "text.pth").write_text("hello world, this is no checkpoint")
    with pytest.raises(CheckpointError, match="no PyTorch file"):
        convert(tmp_path / "text.pth", tmp_path / "out.safetensors")
    tensors = official(coco_r50_c4(), 80)
    name = "proposal_generator.rpn_head.conv.bias"
    with pytest.raises(CheckpointError, match="lacks proposal_generator"):
        convert(write(tmp_path / "a.pth", {k: v for k, v in tensors.items() if k != name}), tmp_path / "o.safetensors")
    with pytest.raises(CheckpointError, match=r"is \(7,\) instead of \(1024,\)"):
        convert(write(tmp_path / "b.pth", tensors | {name: torch.zeros(7)}), tmp_path / "o.safetensors")
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(OVBridgeError, match="choose another name"):
        convert(tmp_path / "a.pth", tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "mine"


def backbone_table() -> dict[str, Tensor]:
    """Names of a torchvision ResNet with one narrow bottleneck a stage."""
    table = {"conv1.weight": torch.ones(8, 3, 7, 7), "fc.weight": torch.ones(5, 32), "fc.bias": torch.ones(5)}
    shapes = {"conv1": (8, 1, 1), "conv2": (8, 3, 3), "conv3": (32, 1, 1)}
    norms = {"bn1": 8}
    for layer in range(1, 5):
        inputs = 8 if layer == 1 else 32
        for i, (name, (outputs, *kernel)) in enumerate(shapes.items(), start=1):
            table[f"layer{layer}.0.{name}.weight"] = torch.ones(outputs, inputs if i == 1 else 8, *kernel)
            norms[f"layer{layer}.0.bn{i}"] = outputs
        table[f"layer{layer}.0.downsample.0.weight"] = torch.ones(32, inputs, 1, 1)
        norms[f"layer{layer}.0.downsample.1"] = 32
    for name, width in norms.items():
        table |= {f"{name}.{part}": torch.ones(width) for part in ("weight", "bias", "running_mean", "running_var")}
        table[f"{name}.num_batches_tracked"] = torch.tensor(1)
    return table


@pytest.mark.parametrize("form", ["pth", "safetensors", "pkl"])
def test_imagenet_backbones(tmp_path: Path, capsys: pytest.CaptureFixture[str], form: str) -> None:
    table, source, target = backbone_table(), tmp_path / f"in.{form}", tmp_path / "out.safetensors"
    if form == "pth":
        write(source, table)
    elif form == "safetensors":
        save_file(table, source)
    else:
        source.write_bytes(pickle.dumps({name: value.numpy() for name, value in table.items()}, protocol=2))
    for _ in range(2):
        convert(source, target, json=True)
        report = json.loads(capsys.readouterr().out)
    assert (report["architecture"], report["depths"], report["stride_in_1x1"]) == ("backbone", [1, 1, 1, 1], False)
    assert report["pixels"]["order"] == "rgb"
    assert report["tensors"]["used"] + len(report["tensors"]["reported"]) == len(table)
    assert report["tensors"]["reported"]["fc.bias"] == "classifier of ImageNet's classes: not needed"
    header = read_backbone_header(target)
    assert header is not None
    assert (header.stem_channels, header.channels) == (8, (32, 32, 32, 32))
    convert(source, target)
    assert "stride in the 3x3" in capsys.readouterr().out
    with pytest.raises(ConfigError, match="leave --names out"):
        convert(source, target, names=tmp_path / "nowhere.txt")
    (tmp_path / "mine.safetensors").write_text("notes")
    with pytest.raises(CheckpointError, match="is no backbone of ours"):
        convert(source, tmp_path / "mine.safetensors")


def test_a_hostile_pkl_executes_nothing(tmp_path: Path) -> None:
    witness, source = tmp_path / "witness", tmp_path / "R-50.pkl"
    source.write_bytes(pickle.dumps({"blobs": {"conv1_w": Hostile(witness)}}, protocol=2))
    with pytest.raises(CheckpointError, match="nothing in it was executed"):
        convert(source, tmp_path / "out.safetensors")
    assert not witness.exists()
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("prefix", ["", "module."])
def test_mavl_is_recognised(tmp_path: Path, prefix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    shallow = replace(mavl_full(), encoder_layers=1, decoder_layers=1, fusion_layers=1)
    monkeypatch.setattr(weights, "mavl_full", lambda: shallow)
    content = {
        "model": {
            f"{prefix}transformer.level_embed": torch.zeros(4, 256),
            f"{prefix}class_embed.1.bias": torch.zeros(2),
        }
    }
    with pytest.raises(CheckpointError, match="does not fit its architecture"):
        convert(write(tmp_path / "in.pth", content), tmp_path / "out.safetensors")
    assert not (tmp_path / "out.safetensors").exists()
