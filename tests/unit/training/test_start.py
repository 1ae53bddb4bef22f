from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ovbridge.detector import DetectorMetadata, TwoStageDetector, save_detector, world_r18_fpn
from ovbridge.detector.pretrained import PretrainedBackbone, write_backbone
from ovbridge.errors import CheckpointError, ConfigError
from ovbridge.training.optim import OptimConfig, build_optimizer
from ovbridge.training.stages import STAGES
from ovbridge.training.start import starting_detector
from ovbridge.vocabulary import TextBank, Vocabulary

NAMES = ("mug", "kite", "sofa")
BANK = TextBank(names=NAMES, embeddings_KD=torch.eye(3, 8), encoder="builtin")
SMALL = {"channels": (8, 8, 8, 8), "out_stages": (3,)}
LINEAR = world_r18_fpn(embedding_dim=99, **SMALL)
TRANSFER = world_r18_fpn(embedding_dim=99, transfer=True, **SMALL)


def _saved(path: Path, model: TwoStageDetector, stage: str, encoder: str = "builtin") -> Path:
    vocabulary = tuple(Vocabulary.of_names(NAMES).to_json())
    save_detector(path, model, DetectorMetadata(stage=stage, vocabulary=vocabulary, text_encoder=encoder))
    return path


@pytest.fixture
def rkd(tmp_path: Path) -> Path:
    return _saved(tmp_path / "rkd.safetensors", starting_detector(LINEAR, STAGES["base"], BANK, None, seed=1), "rkd")


def test_the_text_bank_sets_the_embedding_width_and_the_seed_the_weights() -> None:
    models = [starting_detector(LINEAR, STAGES["base"], BANK, None, seed=seed) for seed in (1, 1, 2)]
    weights = [model.roi_head.projection.linear.weight for model in models]
    assert weights[0].shape[0] == 8
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_weight_transfer_keeps_the_distilled_projection_and_freezes_it(rkd: Path) -> None:
    before = starting_detector(LINEAR, STAGES["base"], BANK, None, seed=1)
    model = starting_detector(TRANSFER, STAGES["rkd_pis_wt"], BANK, rkd, seed=5)
    optimizer = build_optimizer(model, OptimConfig(learning_rate=0.1, warmup_steps=0))
    features = torch.randn(4, 256)
    (model.roi_head.logits(features).sum() + model.roi_head.distilled_unit_embeddings(features).sum()).backward()
    new = [model.roi_head.projection.transfer2.weight, model.roi_head.projection.residual2.weight]
    was = [weight.detach().clone() for weight in new]
    optimizer.step()
    linear, old = model.roi_head.projection.linear, before.roi_head.projection.linear
    assert torch.equal(linear.weight, old.weight)
    assert torch.equal(linear.bias, old.bias)
    assert not any(torch.equal(a, b) for a, b in zip(was, new, strict=True))


def test_later_stages_keep_batch_norm_as_loaded(rkd: Path) -> None:
    model = starting_detector(TRANSFER, STAGES["rkd_pis_wt"], BANK, rkd, seed=5)
    before = {k: v.clone() for k, v in model.state_dict().items() if "running" in k or "num_batches" in k}
    assert before
    model.encode([torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)])
    after = model.state_dict()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    base = starting_detector(LINEAR, replace(STAGES["base"], batch_norm="train"), BANK, None, seed=1)
    base.encode([torch.randint(0, 255, (3, 64, 64), dtype=torch.uint8)])
    assert any(int(v) for k, v in base.state_dict().items() if "num_batches" in k)


def test_missing_foreign_and_misfitting_starts_are_refused(tmp_path: Path, rkd: Path) -> None:
    def refused(match: str, **changes: object) -> None:
        arguments = {"config": LINEAR, "stage": STAGES["rkd"], "bank": BANK, "init": rkd, **changes}
        with pytest.raises((ConfigError, CheckpointError), match=match) as caught:
            starting_detector(seed=0, **arguments)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)

    model = starting_detector(LINEAR, STAGES["base"], BANK, None, seed=1)
    base = _saved(tmp_path / "base.safetensors", model, "base")
    refused("give it with --init", init=None)
    refused("starts from a 'base' checkpoint, .* is 'rkd'")
    refused("does not exist", init=tmp_path / "absent.safetensors")
    refused("text of 'builtin', the text bank is of 'other'", bank=replace(BANK, encoder="other"), init=base)
    wider = world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 16), out_stages=(3,))
    refused("another architecture: backbone.*here: use the recipe", config=wider, init=base)
    wide_bank = replace(BANK, embeddings_KD=torch.eye(3, 16))
    refused("another architecture: roi_head.projection", bank=wide_bank, init=base)


def test_frozen_first_layers_need_pretrained_ones(tmp_path: Path) -> None:
    frozen = replace(LINEAR, backbone=replace(LINEAR.backbone, freeze_at=2))
    with pytest.raises(ConfigError, match=r"--init, or --set detector\.backbone\.freeze_at=0"):
        starting_detector(frozen, STAGES["base"], BANK, None, seed=0)
    donor = starting_detector(LINEAR, STAGES["base"], BANK, None, seed=3).state_dict()
    file = tmp_path / "imagenet.safetensors"
    save_file({name: value.contiguous() for name, value in donor.items() if "backbone" in name}, file)
    model = starting_detector(frozen, STAGES["base"], BANK, file, seed=0)
    name = next(name for name in donor if name.startswith("backbone") and name.endswith("weight"))
    assert torch.equal(model.state_dict()[name], donor[name])
    save_file({"something": torch.zeros(1)}, file)
    with pytest.raises(CheckpointError, match="holds no tensor of this backbone"):
        starting_detector(frozen, STAGES["base"], BANK, file, seed=0)


def test_a_backbone_file_brings_its_pixels_and_stride_to_every_stage(tmp_path: Path) -> None:
    donor = starting_detector(LINEAR, STAGES["base"], BANK, None, seed=3)
    tensors = {
        name.removeprefix("backbone.body."): value
        for name, value in donor.state_dict().items()
        if name.startswith("backbone.body.")
    }
    header = PretrainedBackbone(
        source="x.pkl",
        mean=(1.0, 2.0, 3.0),
        std=(4.0, 5.0, 6.0),
        order="bgr",
        block="basic",
        stem_channels=8,
        depths=(2, 2, 2, 2),
        channels=(8, 8, 8, 8),
        stride_in_1x1=True,
    )
    file = tmp_path / "imagenet.safetensors"
    write_backbone(file, tensors, header)
    frozen = replace(LINEAR, backbone=replace(LINEAR.backbone, freeze_at=2))
    model = starting_detector(frozen, STAGES["base"], BANK, file, seed=0)
    assert all(torch.equal(model.state_dict()["backbone.body." + name], value) for name, value in tensors.items())
    base = _saved(tmp_path / "base.safetensors", model, "base")
    later = starting_detector(frozen, STAGES["rkd"], BANK, base, seed=0)
    for config in (model.config, later.config):
        assert (config.pixels.order, config.pixels.mean, config.pixels.std) == ("bgr", header.mean, header.std)
        assert config.backbone.stride_in_1x1
        assert config.backbone.freeze_at == 2
    write_backbone(file, {n: v for n, v in tensors.items() if n != "stem.weight"}, header)
    with pytest.raises(CheckpointError, match=r"lacks backbone\.body\.stem\.weight"):
        starting_detector(frozen, STAGES["base"], BANK, file, seed=0)
