"""Networks of torchvision and timm as backbones: pieces, both heads, freezing, training, round trip."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from ovbridge.detector import (
    DetectorConfig,
    DetectorMetadata,
    TwoStageDetector,
    build_detector,
    coco_r50_c4,
    load_detector,
    lvis_r50_fpn,
    save_detector,
    with_network,
)
from ovbridge.detector.imagenet_weights import map_imagenet
from ovbridge.detector.library_network import staged_network
from ovbridge.detector.pretrained import fitted_to, load_backbone, write_backbone
from ovbridge.errors import CheckpointError, ConfigError
from ovbridge.structures import BoxLabels, RegionTargets, TrainingImage
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.objectives import detection_losses
from ovbridge.training.stages import set_training_mode

BANK = torch.eye(4, 512)


def _small(config: DetectorConfig) -> DetectorConfig:
    """The paper's detector with fewer proposals and narrower heads."""
    rpn = replace(config.rpn, pre_nms_train=50, post_nms_train=20, pre_nms_test=50, post_nms_test=20)
    roi = replace(config.roi, sampled_regions=16)
    if roi.fully_connected is not None:
        roi = replace(roi, fully_connected=replace(roi.fully_connected, widths=(32, 32)))
    return replace(config, rpn=rpn, roi=roi, mask=None)


def _picture(height: int = 64, width: int = 96) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def _step(model: TwoStageDetector) -> dict[str, Tensor]:
    image = TrainingImage(
        image_id=1,
        pixels=_picture(),
        boxes=BoxLabels(boxes_xyxy=torch.tensor([[8.0, 8.0, 60.0, 50.0]]), class_ids=torch.tensor([2])),
        regions=RegionTargets(
            boxes_xyxy=torch.tensor([[0.0, 0.0, 40.0, 40.0], [20.0, 10.0, 90.0, 60.0]]),
            embeddings=torch.randn(2, 512, generator=torch.Generator().manual_seed(1)),
            scores=torch.ones(2),
        ),
    )
    return detection_losses(model, [image], weights=LossWeights(), generator=torch.Generator().manual_seed(0))


def _check_learning(model: TwoStageDetector, freeze_at: int) -> None:
    set_training_mode(model, "frozen")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    losses = _step(model)
    assert all(torch.isfinite(loss) for loss in losses.values())
    assert {"classification", "box", "rkd_l1", "rkd_relation", "rpn_objectness"} <= set(losses)
    torch.stack(list(losses.values())).sum().backward()
    torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.01).step()
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    body = "backbone.body." if model.config.backbone.pyramid else "backbone."
    frozen = (f"{body}stem.", *(f"{body}stages.{s}." for s in range(2, freeze_at + 1)))
    assert not any(name.startswith(frozen) for name in changed)
    assert any(name.startswith(f"{body}stages.{freeze_at + 1}.") for name in changed)
    assert not any("running_" in name for name in changed)
    if model.config.roi.stage5 is not None:
        assert any(name.startswith("roi_head.trunk.stage5.") for name in changed)


@pytest.mark.parametrize("head", [lvis_r50_fpn, coco_r50_c4])
@pytest.mark.parametrize(
    "network",
    [
        "timm/test_convnext",
        "timm/test_resnet",
        pytest.param("timm/convnext_tiny", marks=pytest.mark.slow),
        pytest.param("timm/swin_tiny_patch4_window7_224", marks=pytest.mark.slow),
        pytest.param("torchvision/convnext_tiny", marks=pytest.mark.slow),
        pytest.param("torchvision/swin_t", marks=pytest.mark.slow),
        pytest.param("timm/resnet50d", marks=pytest.mark.slow),
    ],
)
def test_detects_trains_and_comes_back_from_its_file(tmp_path: Path, network: str, head: object) -> None:
    config = _small(with_network(head(), network))  # type: ignore[operator]
    assert (config.backbone.network, config.pixels.order) == (network, "rgb")
    model = build_detector(config, BANK, seed=1)
    assert [f.shape[2:] for f in model.encode([_picture()]).features][:1] == [
        (64 // model.backbone.strides[0], 96 // model.backbone.strides[0])
    ]
    _check_learning(model, freeze_at=2)
    path = tmp_path / "detector.safetensors"
    vocabulary = tuple({"name": f"thing {i}", "role": "base", "category_id": i} for i in range(4))
    save_detector(path, model, DetectorMetadata(stage="base", vocabulary=vocabulary, text_encoder="x"))
    back, _ = load_detector(path)
    assert back.config == model.config
    pictures = [_picture(), _picture(50, 77)]
    everything = replace(config.postprocess, score_threshold=0.0)
    for a, b in zip(
        model.eval().detect(pictures, postprocess=everything),
        back.detect(pictures, postprocess=everything),
        strict=True,
    ):
        assert len(a.scores) > 0
        assert torch.equal(a.boxes_xyxy, b.boxes_xyxy)
        assert torch.equal(a.scores, b.scores)
    # The next stage starts from this file under the plain recipe.
    assert fitted_to(_small(head()), path) == replace(config, name=config.name)  # type: ignore[operator]


@pytest.mark.parametrize("network", ["torchvision/swin_t", "timm/swin_tiny_patch4_window7_224"])
def test_swin_comes_apart_for_any_size(network: str) -> None:
    pieces = staged_network(network, values=False)
    assert (pieces.channels, pieces.channels_last, pieces.batch_norm) == ((96, 192, 384, 768), True, False)
    with torch.no_grad():
        x = pieces.stem(torch.zeros(1, 3, 96, 160))
        for stage in pieces.stages:
            x = stage(x)
        assert tuple(x.shape) == (1, 3, 5, 768)
        assert tuple(pieces.stages[3](torch.zeros(2, 14, 14, 384)).shape) == (2, 7, 7, 768)


def test_plain_resnets_become_ours_with_folded_norms() -> None:
    for name in ("timm/resnet50", "torchvision/resnet50"):
        config = with_network(coco_r50_c4(), name)
        assert config.backbone.network is None
        assert not config.backbone.stride_in_1x1
        assert config.pixels.order == "rgb"
    config = with_network(lvis_r50_fpn(), "timm/resnet18")
    assert (config.backbone.block, config.backbone.depths) == ("basic", (2, 2, 2, 2))
    assert config.backbone.channels == (64, 128, 256, 512)
    with pytest.raises(ConfigError, match="wants bottlenecks"):
        with_network(coco_r50_c4(), "timm/resnet18")


@pytest.mark.parametrize("head", [lvis_r50_fpn, coco_r50_c4])
@pytest.mark.parametrize("network", ["timm/test_convnext", "timm/test_resnet"])
def test_a_librarys_weights_file_computes_what_the_library_does(tmp_path: Path, network: str, head: object) -> None:
    import timm

    with torch.random.fork_rng():
        torch.manual_seed(4)
        theirs = timm.create_model(network.removeprefix("timm/"), pretrained=False).eval()
        for name, value in theirs.state_dict().items():
            if "running" in name:
                value.uniform_(0.5, 1.5)
    weights = map_imagenet(theirs.state_dict(), source="timm.safetensors", network=network)
    assert "unknown: not used" not in weights.reported.values()
    assert all(name.startswith(("head", "fc", "norm")) or "tracked" in name for name in weights.reported)
    path = tmp_path / "b.safetensors"
    write_backbone(path, weights.tensors, weights.header)
    config = _small(fitted_to(head(), path))  # type: ignore[operator]
    model = build_detector(config, BANK).eval()
    assert load_backbone(model, path).unused == ()
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = theirs.forward_intermediates(x, intermediates_only=True)[-4:]
        if config.backbone.pyramid is None:
            assert torch.allclose(model.backbone(x)[0], expected[2], atol=1e-5)
            ours = model.roi_head.trunk.stage5(expected[2])
            assert torch.allclose(ours, expected[3], atol=1e-5)
        else:
            body = model.backbone.body
            got = body(x)
            assert [tuple(g.shape) for g in got] == [tuple(e.shape) for e in expected]
            body.output_norms.clear()
            for mine, other in zip(body(x), expected, strict=True):
                assert torch.allclose(mine, other, atol=1e-5)
    with pytest.raises(CheckpointError, match="lacks"):
        map_imagenet(dict(list(theirs.state_dict().items())[:5]), source="cut.safetensors", network=network)


def test_a_network_set_by_one_override_gets_the_rest_of_its_description() -> None:
    plain = lvis_r50_fpn()
    bare = replace(plain, backbone=replace(plain.backbone, network="timm/test_convnext"))
    assert fitted_to(bare, None) == with_network(plain, "timm/test_convnext")
    assert fitted_to(plain, None) == plain
    with pytest.raises(CheckpointError, match="make it with"):
        build_detector(bare, BANK)


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("timm/convnext_tinny", "timm has no model 'convnext_tinny': did you mean"),
        ("torchvision/swin_x", "torchvision has no classifier 'swin_x'"),
        ("timm/hf-hub:someone/evil", "is not of the form"),
        ("convnext_tiny", "is not of the form"),
        ("timm/regnety_002", "no stem and four stages"),
        ("timm/vit_tiny_patch16_224", "no stem and four stages"),
    ],
)
def test_networks_that_cannot_serve_are_named(name: str, match: str) -> None:
    with pytest.raises(ConfigError, match=match) as caught:
        with_network(lvis_r50_fpn(), name)
    assert "\n" not in str(caught.value)


def test_without_timm_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"pip install 'ovbridge\[hf\]'"):
        with_network(lvis_r50_fpn(), "timm/convnext_tiny")
