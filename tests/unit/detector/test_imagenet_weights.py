"""ImageNet classifiers become backbones that compute the same: names, stride, pixels, norms."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torchvision.models.resnet import Bottleneck, ResNet

from ovbridge.detector import DetectorConfig, build_detector, coco_r50_c4, lvis_r50_fpn
from ovbridge.detector.imagenet_weights import ImagenetWeights, is_imagenet_classifier, map_imagenet
from ovbridge.detector.pooling import batch_rois
from ovbridge.detector.pretrained import fitted_to, load_backbone, read_backbone_header, write_backbone
from ovbridge.errors import CheckpointError

BANK = torch.eye(3, 512)


@pytest.fixture(scope="module")
def classifier() -> ResNet:
    """torchvision's ResNet with one bottleneck a stage and norms that do something."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7).eval()
        for module in network.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                for tensor, low, high in (
                    (module.weight.data, 0.8, 1.2),
                    (module.bias.data, -0.2, 0.2),
                    (module.running_mean, -0.1, 0.1),
                    (module.running_var, 0.5, 1.5),
                ):
                    assert tensor is not None
                    tensor.uniform_(low, high)
    return network


def caffe2_blobs(network: ResNet) -> dict[str, Tensor]:
    """The same weights as MSRA's file has them: batch norms as affine channels, names of Caffe2."""
    blobs = {"conv1_b": torch.zeros(64), "fc1000_w": network.fc.weight, "fc1000_b": network.fc.bias}

    def add(name: str, norm_name: str, conv: torch.nn.Module, norm: torch.nn.Module) -> None:
        scale = norm.weight / (norm.running_var + norm.eps).sqrt()
        blobs[f"{name}_w"] = conv.weight
        blobs[f"{norm_name}_bn_s"], blobs[f"{norm_name}_bn_b"] = scale, norm.bias - norm.running_mean * scale

    add("conv1", "res_conv1", network.conv1, network.bn1)
    for stage in range(2, 6):
        for i, block in enumerate(getattr(network, f"layer{stage - 1}")):
            for k, letter in enumerate("abc", start=1):
                name = f"res{stage}_{i}_branch2{letter}"
                add(name, name, getattr(block, f"conv{k}"), getattr(block, f"bn{k}"))
            if block.downsample is not None:
                add(f"res{stage}_{i}_branch1", f"res{stage}_{i}_branch1", *block.downsample)
    return {name: value.detach().clone() for name, value in blobs.items()}


def stage_maps(network: ResNet, x: Tensor) -> list[Tensor]:
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    maps = []
    for stage in range(1, 5):
        x = getattr(network, f"layer{stage}")(x)
        maps.append(x)
    return maps


def shallow(config: DetectorConfig) -> DetectorConfig:
    return replace(config, mask=None)


def started(tmp_path: Path, weights: ImagenetWeights, config: DetectorConfig) -> torch.nn.Module:
    path = tmp_path / "backbone.safetensors"
    write_backbone(path, weights.tensors, weights.header)
    assert read_backbone_header(path) == weights.header
    model = build_detector(fitted_to(config, path), BANK).eval()
    loaded = load_backbone(model, path)
    assert (loaded.used, loaded.unused) == (len(weights.tensors), ())
    return model


@torch.no_grad()
def test_torchvision_weights_compute_what_torchvision_does(
    tmp_path: Path, classifier: ResNet, generator: torch.Generator
) -> None:
    state = classifier.state_dict()
    assert is_imagenet_classifier(state)
    weights = map_imagenet(state, source="r.pth")
    header = weights.header
    assert (header.depths, header.channels, header.block) == ((1, 1, 1, 1), (256, 512, 1024, 2048), "bottleneck")
    assert (header.order, header.mean, header.std) == ("rgb", (123.675, 116.28, 103.53), (58.395, 57.12, 57.375))
    assert not header.stride_in_1x1
    counters = {name for name in state if name.endswith("num_batches_tracked")}
    assert set(weights.reported) == {"fc.weight", "fc.bias"} | counters
    assert "unknown: not used" not in weights.reported.values()

    pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=generator)
    mean, std = (torch.tensor(v)[:, None, None] * 255 for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = stage_maps(classifier, ((pixels - mean) / std)[None])
    model = started(tmp_path, weights, shallow(lvis_r50_fpn()))
    batch, _ = model.pixels([pixels])
    for ours, theirs in zip(model.backbone.body(batch), expected, strict=True):
        assert torch.allclose(ours, theirs, atol=1e-4 * theirs.abs().max().item())

    model = started(tmp_path, weights, coco_r50_c4())
    assert (model.config.pixels.order, model.config.backbone.stride_in_1x1) == ("rgb", False)
    (feature,) = model.encode([pixels]).features
    assert torch.allclose(feature, expected[2], atol=1e-4 * expected[2].abs().max().item())
    rois = batch_rois([torch.tensor([[5.0, 3.0, 60.0, 50.0], [0.0, 0.0, 96.0, 64.0]])])
    trunk = model.roi_head.trunk
    region = classifier.layer4(trunk.pooler([feature], rois)).mean(dim=(2, 3))
    assert torch.allclose(trunk([feature], rois), region, atol=1e-4 * region.abs().max().item())


@torch.no_grad()
def test_msra_blobs_stride_in_the_1x1_and_see_bgr(
    tmp_path: Path, classifier: ResNet, generator: torch.Generator
) -> None:
    blobs = caffe2_blobs(classifier)
    weights = map_imagenet(blobs, source="R-50.pkl")
    header = weights.header
    assert (header.order, header.mean, header.std) == ("bgr", (103.53, 116.28, 123.675), (1.0, 1.0, 1.0))
    assert header.stride_in_1x1
    assert set(weights.reported) == {"conv1_b", "fc1000_w", "fc1000_b"}
    assert "unknown: not used" not in weights.reported.values()
    config = coco_r50_c4()
    model = started(tmp_path, weights, config)
    assert (model.config.pixels, model.config.backbone.stride_in_1x1) == (config.pixels, True)

    caffe = ResNet(Bottleneck, [1, 1, 1, 1], num_classes=7).eval()
    caffe.load_state_dict(classifier.state_dict())
    for stage in (caffe.layer2, caffe.layer3, caffe.layer4):
        stage[0].conv1.stride, stage[0].conv2.stride = (2, 2), (1, 1)
    pixels = torch.randint(0, 256, (3, 64, 96), dtype=torch.uint8, generator=generator)
    bgr = pixels.float().flip(0) - torch.tensor([103.53, 116.28, 123.675])[:, None, None]
    expected = stage_maps(caffe, bgr[None])
    (feature,) = model.encode([pixels]).features
    assert torch.allclose(feature, expected[2], atol=1e-4 * expected[2].abs().max().item())


def test_detectron2s_torchvision_file_is_told_by_its_author(classifier: ResNet) -> None:
    plain = map_imagenet(classifier.state_dict(), source="x")

    def theirs(name: str) -> str:
        stage = name.split(".")[1]
        renamed = name.replace("stem.", "stem.conv1.", 1)
        return renamed.replace(f"stages.{stage}.", f"res{stage}.") if name.startswith("stages") else renamed

    table = {theirs(name): value for name, value in plain.tensors.items()}
    assert "res2.0.conv1.norm.running_mean" in table
    for author, order in (("torchvision", "rgb"), ("MSRA", "bgr")):
        weights = map_imagenet(table, source="R-50.pkl", author=author)
        assert weights.tensors.keys() == plain.tensors.keys()
        assert weights.reported == {}
        assert (weights.header.order, weights.header.stride_in_1x1) == (order, order == "bgr")


@pytest.mark.parametrize(
    ("name", "ours"),
    [
        ("bn1.running_mean", "stem.norm.running_mean"),
        ("layer2.0.bn2.running_var", "stages.3.0.conv2.norm.running_var"),
        ("layer2.0.conv2.weight", "stages.3.0.conv2.weight"),
        ("layer3.0.downsample.0.weight", "stages.4.0.shortcut.weight"),
        ("layer4.0.conv3.weight", "stages.5.0.conv3.weight"),
    ],
)
def test_nothing_is_made_up_for_what_a_file_lacks(classifier: ResNet, name: str, ours: str) -> None:
    state = {n: value for n, value in classifier.state_dict().items() if n != name}
    with pytest.raises(CheckpointError, match=rf"r\.pth lacks {ours}:"):
        map_imagenet(state, source="r.pth")


def test_blobs_with_some_statistics_are_not_completed(classifier: ResNet) -> None:
    blobs = caffe2_blobs(classifier) | {"res_conv1_bn_rm": torch.zeros(64)}
    with pytest.raises(CheckpointError, match=r"lacks stem\.norm\.running_var"):
        map_imagenet(blobs, source="R-50.pkl")


@pytest.mark.parametrize(
    ("name", "value", "match"),
    [
        ("conv1.weight", torch.tensor(1.0), r"stem\.weight is \(\), no convolution"),
        ("conv1.weight", torch.zeros(64, 3, 7, 7, dtype=torch.int32), r"conv1\.weight holds torch\.int32"),
        ("layer2.0.bn3.bias", torch.full((512,), torch.nan), r"layer2\.0\.bn3\.bias holds numbers that are not finite"),
        ("layer1.0.conv2.weight", torch.zeros(64, 2, 3, 3), r"layer1\.0\.conv2\.weight is .*: say with --network"),
        (
            "conv2.weight",
            torch.zeros(64, 64, 3, 3),
            r"has conv2\.weight, which no plain ResNet has: say with --network",
        ),
        ("layer1.0.se.fc1.weight", torch.zeros(3), r"has layer1\.0\.se\.fc1\.weight, which no plain ResNet has"),
        ("layer1.0.conv1.bias", torch.zeros(64), r"has layer1\.0\.conv1\.bias, which no plain ResNet has"),
        ("layer1.1.conv2.weight", torch.zeros(64, 64, 3, 3), r"lacks stages\.2\.1\.conv1\.weight"),
    ],
)
def test_damage_and_other_networks_are_named(classifier: ResNet, name: str, value: Tensor, match: str) -> None:
    with pytest.raises(CheckpointError, match=match):
        map_imagenet(classifier.state_dict() | {name: value}, source="r.pth")


def test_a_file_that_is_not_of_the_named_resnet_is_refused(classifier: ResNet) -> None:
    with pytest.raises(CheckpointError, match=r"depths is \(1, 1, 1, 1\) instead of \(3, 4, 6, 3\)"):
        map_imagenet(classifier.state_dict(), source="r.pth", network="torchvision/resnet50")


def test_incomplete_and_foreign_classifiers_are_refused(tmp_path: Path, classifier: ResNet) -> None:
    blobs = caffe2_blobs(classifier)
    with pytest.raises(CheckpointError, match=r"lacks stages\.3\.0\.conv2\.norm\.weight"):
        map_imagenet({n: v for n, v in blobs.items() if n != "res3_0_branch2b_bn_s"}, source="R-50.pkl")
    with pytest.raises(CheckpointError, match="no whole ResNet"):
        map_imagenet({n: v for n, v in blobs.items() if not n.startswith("res5")}, source="R-50.pkl")
    with pytest.raises(CheckpointError, match=r"res3_0_branch2b_bn_s is \(3,\), a plain ResNet has \(128,\)"):
        map_imagenet(blobs | {"res3_0_branch2b_bn_s": torch.ones(3)}, source="R-50.pkl")
    assert not is_imagenet_classifier({"backbone.stem.conv1.weight"})
    path = tmp_path / "b.safetensors"
    weights = map_imagenet(blobs, source="R-50.pkl")
    for change, match in (
        ({n: v for n, v in weights.tensors.items() if n != "stages.4.0.conv1.weight"}, "lacks backbone.stages.4"),
        (weights.tensors | {"stages.5.0.conv1.weight": torch.zeros(2)}, r"stages.5.0.conv1.weight is \(2,\)"),
    ):
        write_backbone(path, change, weights.header)
        with pytest.raises(CheckpointError, match=match):
            load_backbone(build_detector(fitted_to(coco_r50_c4(), path), BANK), path)
