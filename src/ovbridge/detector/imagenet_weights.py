"""Weights of ImageNet classifiers under our names: Detectron2's MSRA and torchvision `.pkl`, torchvision's and timm's
state dictionaries.

Every tensor of a file ends in the backbone or in the report.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ovbridge.detector.library_network import check_network_name, staged_network
from ovbridge.detector.pretrained import PretrainedBackbone, library_backbone
from ovbridge.errors import CheckpointError

_TORCHVISION_MEAN, _TORCHVISION_STD = (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)
_CAFFE_BGR_MEAN = (103.53, 116.28, 123.675)

_NORM_EPS = 1e-5

_CAFFE2_PARTS = {
    "w": "weight",
    "bn_s": "norm.weight",
    "bn_b": "norm.bias",
    "bn_rm": "norm.running_mean",
    "bn_riv": "norm.running_var",
}
"""An affine channel (s, b) stands for a whole batch norm there."""

_NOT_NEEDED: tuple[tuple[str, str], ...] = (
    (r"^(fc1000|pred|fc|head|classifier)[._]", "classifier of ImageNet's classes: not needed"),
    (r"num_batches_tracked$", "counter of a norm: not needed"),
    (r"^(norm|norm_pre|head_norm)\.", "norm before the classifier: not needed"),
    (r"^conv1_b$", "bias before a norm: Detectron2 leaves it out too"),
)


@dataclass(frozen=True, kw_only=True)
class ImagenetWeights:
    """A classifier's weights, ready for `write_backbone`."""

    header: PretrainedBackbone
    tensors: dict[str, Tensor]
    """By our names, float32."""
    reported: dict[str, str]
    """Name in the file → why it is not used."""


def is_imagenet_classifier(names: Mapping[str, Any] | set[str]) -> bool:
    """Whether these tensor names are a classifier's that can be told without a name: a ResNet in any spelling."""
    return any(name in names for name in ("conv1_w", "conv1.weight", "stem.conv1.weight"))


def map_imagenet(
    tensors: Mapping[str, Tensor], *, source: str, author: str = "", network: str | None = None
) -> ImagenetWeights:
    """Rename a classifier's tensors and say what they need.

    `author`: who a `.pkl` says wrote it: Detectron2's names with torchvision's weights come from "torchvision".
    `network`: "timm/NAME" or "torchvision/NAME" for anything but a ResNet told by its names.
    Raises CheckpointError where tensors are absent or left over that the network should have.
    """
    if network is not None and library_backbone(network).network is not None:
        return _map_library(tensors, source, network)
    if "conv1_w" in tensors:
        renamed = {name: _caffe2_name(name) for name in tensors}
        caffe = True
    elif "stem.conv1.weight" in tensors:
        renamed = {name: _detectron2_name(name) for name in tensors}
        caffe = author != "torchvision"
    else:
        renamed = {name: _torchvision_name(name) for name in tensors}
        caffe = False
    ours = {new: tensors[old].float() for old, new in renamed.items() if new is not None}
    header = _resnet_header(ours, source, caffe=caffe)
    if network is not None:
        described = library_backbone(network)
        header = replace(header, mean=described.mean, std=described.std)
    return ImagenetWeights(header=header, tensors=_complete(ours, source), reported=_reported(renamed))


def _caffe2_name(name: str) -> str | None:
    found = re.match(r"^(?:(?:res_)?conv1|res([2-5])_(\d+)_branch(1|2[abc]))_(w|bn_(?:s|b|rm|riv))$", name)
    if not found:
        return None
    stage, block, branch, part = found.groups()
    piece = "stem"
    if stage is not None:
        layer = "shortcut" if branch == "1" else f"conv{'abc'.index(branch[1]) + 1}"
        piece = f"stages.{stage}.{block}.{layer}"
    return f"{piece}.{_CAFFE2_PARTS[part]}"


def _torchvision_name(name: str) -> str | None:
    found = re.match(
        r"^(?:layer(\d)\.(\d+)\.)?(conv|bn|downsample\.)(\d)\.(weight|bias|running_mean|running_var)$", name
    )
    if not found:
        return None
    layer, block, kind, number, part = found.groups()
    is_norm = kind == "bn" or (kind == "downsample." and number == "1")
    if not is_norm and part != "weight":
        return None
    piece = "stem"
    if layer is not None:
        piece = f"stages.{int(layer) + 1}.{block}." + ("shortcut" if kind == "downsample." else f"conv{number}")
    return f"{piece}.norm.{part}" if is_norm else f"{piece}.weight"


def _detectron2_name(name: str) -> str | None:
    found = re.match(
        r"^(stem|res([2-5])\.(\d+))\.(conv\d|shortcut)\.(weight|norm\.(?:weight|bias|running_mean|running_var))$", name
    )
    if not found:
        return None
    piece, stage, block, layer, part = found.groups()
    return f"stem.{part}" if piece == "stem" else f"stages.{stage}.{block}.{layer}.{part}"


def _reported(renamed: Mapping[str, str | None]) -> dict[str, str]:
    return {
        name: next((why for pattern, why in _NOT_NEEDED if re.search(pattern, name)), "unknown: not used")
        for name, new in renamed.items()
        if new is None
    }


def _resnet_header(ours: Mapping[str, Tensor], source: str, *, caffe: bool) -> PretrainedBackbone:
    blocks = [re.match(r"stages\.(\d)\.(\d+)\.", name) for name in ours]
    depths = tuple(max((int(f[2]) + 1 for f in blocks if f and int(f[1]) == s), default=0) for s in range(2, 6))
    if "stem.weight" not in ours or not all(depths):
        raise CheckpointError(f"{source} is no whole ResNet (blocks a stage: {depths}): truncated, or another model")
    bottleneck = "stages.2.0.conv3.weight" in ours
    last = "conv3" if bottleneck else "conv2"
    return PretrainedBackbone(
        source=source,
        mean=_CAFFE_BGR_MEAN if caffe else _TORCHVISION_MEAN,
        std=(1.0, 1.0, 1.0) if caffe else _TORCHVISION_STD,
        order="bgr" if caffe else "rgb",
        block="bottleneck" if bottleneck else "basic",
        stem_channels=len(ours["stem.weight"]),
        depths=depths,
        channels=tuple(len(ours.get(f"stages.{s}.0.{last}.weight", ())) for s in range(2, 6)),
        stride_in_1x1=caffe,
    )


def _complete(ours: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """With the statistics that an affine channel has none of: such that it scales and shifts and nothing else."""
    full = dict(ours)
    for name, value in ours.items():
        if not name.endswith(".weight") or ".norm." in name:
            continue
        norm = name.removesuffix("weight") + "norm."
        if norm + "weight" not in ours or norm + "bias" not in ours:
            raise CheckpointError(f"{source} has no norm for {name}: it is truncated or another model")
        width = (len(value),)
        full.setdefault(norm + "running_mean", torch.zeros(width))
        full.setdefault(norm + "running_var", torch.full(width, 1.0 - _NORM_EPS))
        for part in ("weight", "bias", "running_mean", "running_var"):
            if tuple(full[norm + part].shape) != width:
                raise CheckpointError(f"{source}: the norm of {name} has another width: the file is damaged")
    return full


def _map_library(tensors: Mapping[str, Tensor], source: str, name: str) -> ImagenetWeights:
    network = staged_network(name, values=False)
    header = library_backbone(name, source)
    renamed: dict[str, str | None] = {}
    for old in tensors:
        piece = next(((theirs, ours) for theirs, ours in network.prefixes if old.startswith(theirs)), None)
        renamed[old] = piece[1] + old.removeprefix(piece[0]) if piece else None
    pieces = {"stem": network.stem, **{f"stages.{i}": stage for i, stage in enumerate(network.stages, start=2)}}
    expected = {f"{piece}.{k}": v.shape for piece, module in pieces.items() for k, v in module.state_dict().items()}
    ours: dict[str, Tensor] = {}
    for old, new in renamed.items():
        if new is not None and new in expected:
            if tensors[old].shape != expected[new]:
                raise CheckpointError(
                    f"{source}: {old} is {tuple(tensors[old].shape)}, {name} has {tuple(expected[new])}: "
                    "the file is of another network"
                )
            ours[new] = tensors[old].float() if tensors[old].is_floating_point() else tensors[old]
    absent = [new for new in expected if new not in ours and not new.endswith("num_batches_tracked")]
    if absent:
        raise CheckpointError(f"{source} lacks {absent[0]}: it is truncated, or not of {check_network_name(name)[1]}")
    left = {old: (new if new in ours else None) for old, new in renamed.items()}
    return ImagenetWeights(header=header, tensors=ours, reported=_reported(left))
