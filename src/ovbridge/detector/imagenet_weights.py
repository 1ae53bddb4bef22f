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

from ovbridge.detector.backbone import ResNet
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
    (r"^(stem\.)?(fc1000|pred|fc|head|classifier)[._]", "classifier of ImageNet's classes: not needed"),
    (r"num_batches_tracked$", "counter of a norm: not needed"),
    (r"^(norm|norm_pre|head_norm)\.", "norm before the classifier: not needed"),
    (r"^conv1_b$", "bias before a norm: Detectron2 leaves it out too"),
)

_UNKNOWN = "unknown: not used"

_SAY_WHAT = "say with --network what the file is of"

_BODY = re.compile(r"^(stem\.)?(res_)?(conv|bn)\d|^(layer|res)\d")
"""What names of a ResNet's layers begin with, in every spelling."""


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
    described = None if network is None else library_backbone(network)
    if described is not None and described.network is not None:
        return _map_library(tensors, source, described.network)
    if "conv1_w" in tensors:
        tensors = _with_statistics(tensors)
        renamed = {name: _caffe2_name(name) for name in tensors}
        caffe = True
    elif "stem.conv1.weight" in tensors:
        renamed = {name: _detectron2_name(name) for name in tensors}
        caffe = author != "torchvision"
    else:
        renamed = {name: _torchvision_name(name) for name in tensors}
        caffe = False
    reported = _reported(renamed)
    header = _resnet_header({new: tensors[old].shape for old, new in renamed.items() if new}, source, caffe=caffe)
    if described is not None:
        header = _as_described(header, described)
    expected = _resnet_tensors(header)
    foreign = [old for old, new in renamed.items() if new is not None and new not in expected]
    foreign += [old for old, why in reported.items() if why == _UNKNOWN and _BODY.match(old)]
    if foreign:
        raise CheckpointError(f"{source} has {foreign[0]}, which no plain ResNet has: {_SAY_WHAT}")
    ours = _checked(tensors, renamed, expected, source, network="a plain ResNet")
    return ImagenetWeights(header=header, tensors=ours, reported=reported)


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
    if (layer is None and kind + number not in ("conv1", "bn1")) or (kind == "downsample." and number > "1"):
        return None
    is_norm = kind == "bn" or (kind == "downsample." and number == "1")
    if not is_norm and part != "weight":
        return None
    piece = "stem"
    if layer is not None:
        piece = f"stages.{int(layer) + 1}.{block}." + ("shortcut" if kind == "downsample." else f"conv{number}")
    return f"{piece}.norm.{part}" if is_norm else f"{piece}.weight"


def _detectron2_name(name: str) -> str | None:
    found = re.match(
        r"^(?:stem\.conv1|res([2-5])\.(\d+)\.(conv\d|shortcut))\.(weight|norm\.(?:weight|bias|running_mean|running_var))$",
        name,
    )
    if not found:
        return None
    stage, block, layer, part = found.groups()
    return f"stem.{part}" if stage is None else f"stages.{stage}.{block}.{layer}.{part}"


def _reported(renamed: Mapping[str, str | None]) -> dict[str, str]:
    return {
        name: next((why for pattern, why in _NOT_NEEDED if re.search(pattern, name)), _UNKNOWN)
        for name, new in renamed.items()
        if new is None
    }


def _with_statistics(blobs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Caffe2's affine channels, which have no statistics, with such that they scale and shift and nothing else."""
    full = dict(blobs)
    if not any(name.endswith(("_bn_rm", "_bn_riv")) for name in blobs):
        for name, scale in blobs.items():
            if name.endswith("_bn_s"):
                norm = name.removesuffix("s")
                full[norm + "rm"] = torch.zeros(scale.shape)
                full[norm + "riv"] = torch.full(scale.shape, 1.0 - _NORM_EPS)
    return full


def _resnet_header(shapes: Mapping[str, torch.Size], source: str, *, caffe: bool) -> PretrainedBackbone:
    blocks = {found.groups() for name in shapes if (found := re.match(r"stages\.(\d)\.(\d+)\.", name))}
    depths = tuple(sum(int(stage) == s for stage, _ in blocks) for s in range(2, 6))
    if "stem.weight" not in shapes or not all(depths):
        raise CheckpointError(f"{source} is no whole ResNet (blocks a stage: {depths}): truncated, or another model")
    bottleneck = any(name.endswith(".conv3.weight") for name in shapes)
    last = "conv3" if bottleneck else "conv2"

    def outputs(name: str) -> int:
        if name not in shapes:
            raise CheckpointError(f"{source} lacks {name}: truncated, or another model")
        shape = shapes[name]
        if len(shape) != 4 or 0 in shape:
            raise CheckpointError(f"{source}: {name} is {tuple(shape)}, no convolution: truncated, or another model")
        return shape[0]

    return PretrainedBackbone(
        source=source,
        mean=_CAFFE_BGR_MEAN if caffe else _TORCHVISION_MEAN,
        std=(1.0, 1.0, 1.0) if caffe else _TORCHVISION_STD,
        order="bgr" if caffe else "rgb",
        block="bottleneck" if bottleneck else "basic",
        stem_channels=outputs("stem.weight"),
        depths=depths,
        channels=tuple(outputs(f"stages.{s}.0.{last}.weight") for s in range(2, 6)),
        stride_in_1x1=caffe,
    )


def _as_described(header: PretrainedBackbone, described: PretrainedBackbone) -> PretrainedBackbone:
    """`header` with the pixels of the library's plain ResNet that its file is said to be of; refused if it is not."""
    unlike = [
        f
        for f in ("block", "stem_channels", "depths", "channels", "stride_in_1x1")
        if getattr(header, f) != getattr(described, f)
    ]
    if unlike:
        field = unlike[0]
        raise CheckpointError(
            f"{header.source} is of another network than --network says: its {field} is {getattr(header, field)} "
            f"instead of {getattr(described, field)}"
        )
    return replace(header, mean=described.mean, std=described.std)


def _resnet_tensors(header: PretrainedBackbone) -> dict[str, Tensor]:
    """The tensors, without values, of the ResNet that `header` describes."""
    with torch.device("meta"):
        network = ResNet(
            stem_channels=header.stem_channels,
            depths=header.depths,
            channels=header.channels,
            out_stages=(5,),
            block=header.block,
            norm="frozen",
            stride_in_1x1=header.stride_in_1x1,
            freeze_at=0,
        )
    return network.state_dict()


def _checked(
    tensors: Mapping[str, Tensor],
    renamed: Mapping[str, str | None],
    expected: Mapping[str, Tensor],
    source: str,
    *,
    network: str,
) -> dict[str, Tensor]:
    """What `expected` names, by our names; floats as float32. CheckpointError where any is absent or damaged."""
    ours: dict[str, Tensor] = {}
    for old, new in renamed.items():
        if new is None or new not in expected:
            continue
        value, place = tensors[old], expected[new]
        if value.shape != place.shape:
            raise CheckpointError(
                f"{source}: {old} is {tuple(value.shape)}, {network} has {tuple(place.shape)}: {_SAY_WHAT}"
            )
        if value.is_floating_point() != place.is_floating_point():
            raise CheckpointError(f"{source}: {old} holds {value.dtype}: take the network's weights in floating point")
        ours[new] = value.float() if value.is_floating_point() else value
        if not ours[new].isfinite().all():
            raise CheckpointError(f"{source}: {old} holds numbers that are not finite: it is damaged")
    absent = [name for name in expected if name not in ours and not name.endswith("num_batches_tracked")]
    if absent:
        raise CheckpointError(f"{source} lacks {absent[0]}: it is truncated, or not of {network}")
    return ours


def _map_library(tensors: Mapping[str, Tensor], source: str, name: str) -> ImagenetWeights:
    network = staged_network(name, values=False)
    header = library_backbone(name, source)
    renamed: dict[str, str | None] = {}
    for old in tensors:
        piece = next(((theirs, ours) for theirs, ours in network.prefixes if old.startswith(theirs)), None)
        renamed[old] = piece[1] + old.removeprefix(piece[0]) if piece else None
    pieces = {"stem": network.stem, **{f"stages.{i}": stage for i, stage in enumerate(network.stages, start=2)}}
    expected = {f"{piece}.{k}": v for piece, module in pieces.items() for k, v in module.state_dict().items()}
    ours = _checked(tensors, renamed, expected, source, network=check_network_name(name)[1])
    left = {old: (new if new in ours else None) for old, new in renamed.items()}
    return ImagenetWeights(header=header, tensors=ours, reported=_reported(left))
