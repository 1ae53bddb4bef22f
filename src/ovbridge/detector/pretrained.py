"""A pretrained backbone in one file, and a detector that is made to fit it.

The file (safetensors) names its tensors "stem...." and "stages.2...." to "stages.5....", whatever detector they go
into; its header says what they are of, and the pixels that they were trained on. Those cannot be seen in a tensor's
shape, so they go with the weights: a detector that takes the weights takes them too.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ovbridge.detector.atomic_file import write_safetensors
from ovbridge.detector.checkpoint_file import read_metadata
from ovbridge.detector.config import DetectorConfig
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.detector.library_network import PLAIN_RESNETS, check_network_name, staged_network
from ovbridge.errors import CheckpointError, ConfigError

FORMAT = "ovbridge-backbone-1"
"""The one key of the file's metadata."""

FULL_CHANNELS = {"basic": (64, 128, 256, 512), "bottleneck": (256, 512, 1024, 2048)}
"""Output channels of stages 2 to 5 of a plain ResNet."""


@dataclass(frozen=True, kw_only=True)
class PretrainedBackbone:
    """What a file of backbone weights says of itself."""

    source: str
    """The file that it was made from."""
    mean: tuple[float, float, float]
    """Of the pixels it was trained on, per channel in `order`, 0..255."""
    std: tuple[float, float, float]
    """As `mean`."""
    order: Literal["rgb", "bgr"]
    """Channel order."""
    network: str | None = None
    """"timm/NAME" or "torchvision/NAME"; None for a plain ResNet, which the fields below describe."""
    block: Literal["basic", "bottleneck"] = "bottleneck"
    """As in `BackboneConfig`."""
    stem_channels: int = 64
    """As in `BackboneConfig`."""
    depths: tuple[int, ...] = (3, 4, 6, 3)
    """Blocks of stages 2 to 5."""
    channels: tuple[int, ...] = FULL_CHANNELS["bottleneck"]
    """Output channels of stages 2 to 5."""
    stride_in_1x1: bool = False
    """As in `BackboneConfig`."""


def library_backbone(name: str, source: str = "") -> PretrainedBackbone:
    """The description of "timm/NAME" or "torchvision/NAME"; a plain ResNet becomes our own, whose norms cost nothing.

    Raises ConfigError where there is no such network.
    """
    network = staged_network(name, values=False)
    plain = PLAIN_RESNETS.get(check_network_name(name)[1])
    common = PretrainedBackbone(
        source=source or name, mean=network.mean, std=network.std, order="rgb", channels=network.channels
    )
    if plain is None:
        return replace(common, network=name)
    return replace(common, block="basic" if plain[0] == "basic" else "bottleneck", depths=plain[1])


def write_backbone(path: Path, tensors: dict[str, Tensor], header: PretrainedBackbone) -> None:
    """Write atomically; raises CheckpointError where it cannot."""
    write_safetensors(path, tensors, {FORMAT: json.dumps(asdict(header), sort_keys=True)})


def read_backbone_header(path: Path) -> PretrainedBackbone | None:
    """The header of a file of `write_backbone`; None for any other or no file."""
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(FORMAT)
    except (SafetensorError, OSError):
        return None
    if text is None:
        return None
    try:
        header = TypeAdapter(PretrainedBackbone).validate_json(text)
    except ValidationError:
        header = None
    if header is None or len(header.depths) != 4 or len(header.channels) != 4:
        raise CheckpointError(f"{path}: its header cannot be read: convert the weights again")
    return header


def with_backbone(config: DetectorConfig, header: PretrainedBackbone) -> DetectorConfig:
    """`config` with the backbone that `header` describes, and its pixels; the rest stays.

    Raises ConfigError where the head cannot take the backbone's last stage.
    """
    backbone, roi = config.backbone, config.roi
    stages = len(backbone.depths)
    if roi.stage5 is not None:
        if header.network is None and header.block == "basic":
            raise ConfigError(f"{header.source}: a C4 head wants bottlenecks: take a ResNet-50 or larger, or a pyramid")
        roi = replace(roi, stage5=replace(roi.stage5, depth=header.depths[3], channels=header.channels[3]))
    return replace(
        config,
        pixels=replace(
            config.pixels,
            mean=header.mean,
            std=header.std,
            order=header.order,
            # Patches of 4 pixels and their merging want whole patches.
            size_divisibility=max(32, config.pixels.size_divisibility)
            if header.network
            else config.pixels.size_divisibility,
        ),
        backbone=replace(
            backbone,
            network=header.network,
            block=header.block,
            stem_channels=header.stem_channels,
            depths=header.depths[:stages],
            channels=header.channels[:stages],
            stride_in_1x1=header.stride_in_1x1,
        ),
        roi=roi,
    )


def with_network(config: DetectorConfig, name: str) -> DetectorConfig:
    """`config` with a torchvision or timm network as its backbone: "timm/convnext_tiny", "torchvision/resnet50"."""
    return with_backbone(config, library_backbone(name))


def same_input(config: DetectorConfig, other: DetectorConfig) -> DetectorConfig:
    """`config` with what the weights of `other` need and their shapes do not show: pixels, network, place of stride."""
    pixels = replace(config.pixels, mean=other.pixels.mean, std=other.pixels.std, order=other.pixels.order)
    backbone = replace(config.backbone, stride_in_1x1=other.backbone.stride_in_1x1)
    if other.backbone.network is None:
        return replace(config, pixels=pixels, backbone=backbone)
    return replace(
        config,
        pixels=replace(pixels, size_divisibility=other.pixels.size_divisibility),
        backbone=replace(backbone, network=other.backbone.network, channels=other.backbone.channels),
        roi=replace(config.roi, stage5=other.roi.stage5),
    )


def fitted_to(config: DetectorConfig, init: Path | None) -> DetectorConfig:
    """`config` with what the weights it starts from need: those of a file of `write_backbone` or of a detector.

    Without such weights a configuration that only names a library's network gets the rest of its description.
    """
    if init is not None:
        header = read_backbone_header(init)
        if header is not None:
            return with_backbone(config, header)
        try:
            return same_input(config, read_metadata(init)[0])
        except CheckpointError:
            # Whoever loads the file says what it is.
            pass
    network = config.backbone.network
    if network is not None:
        described = library_backbone(network)
        if config.backbone.channels != described.channels[: len(config.backbone.channels)]:
            return with_backbone(config, described)
    return config


@dataclass(frozen=True, kw_only=True)
class LoadedBackbone:
    """What became of the tensors of a file."""

    used: int
    """How many went into the detector."""
    unused: tuple[str, ...]
    """Names that the detector has no place for."""


def load_backbone(model: TwoStageDetector, path: Path) -> LoadedBackbone:
    """Copy the file's tensors into the backbone of `model`, and into its fifth stage wherever that is.

    Raises CheckpointError where a tensor of the backbone would stay without a value or has another shape.
    """
    with safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    body = "backbone.body." if model.config.backbone.pyramid else "backbone."
    in_trunk = model.config.roi.stage5 is not None
    here = model.state_dict()
    fitting, unused = {}, []
    for name, value in tensors.items():
        ours = "roi_head.trunk.stage5." + name.removeprefix("stages.5.")
        if not (in_trunk and name.startswith("stages.5.")):
            ours = body + name
        if ours not in here:
            unused.append(name)
        elif here[ours].shape != value.shape:
            raise CheckpointError(
                f"{path}: {name} is {tuple(value.shape)}, the detector wants {tuple(here[ours].shape)}: "
                "it is of another network"
            )
        else:
            fitting[ours] = value
    pieces = (body + "stem.", body + "stages.", "roi_head.trunk.stage5.")
    absent = [n for n in here if n.startswith(pieces) and n not in fitting and not n.endswith("num_batches_tracked")]
    if absent:
        raise CheckpointError(f"{path} lacks {absent[0]}: it is of another network, or truncated: convert it again")
    with torch.no_grad():
        model.load_state_dict(fitting, strict=False)
    return LoadedBackbone(used=len(fitting), unused=tuple(unused))
