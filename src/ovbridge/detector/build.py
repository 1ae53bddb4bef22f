"""Assembles a detector from its configuration, and turns a linear projection into a transferred one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from ovbridge.detector.backbone import PyramidBackbone, ResNet
from ovbridge.detector.classifier import CosineClassifier
from ovbridge.detector.config import BackboneConfig, DetectorConfig, RoiConfig, TransferConfig
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.detector.library_body import LibraryBody, LibraryTrunk
from ovbridge.detector.library_network import StagedNetwork, staged_network
from ovbridge.detector.mask_head import MaskHead
from ovbridge.detector.pixels import PixelNormalizer
from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.projection import LinearProjection, WeightTransferProjection, build_projection
from ovbridge.detector.roi_head import BoxRegressor, FullyConnectedTrunk, RoIHead, Stage5Trunk, Trunk
from ovbridge.detector.rpn import RegionProposalNetwork
from ovbridge.errors import CheckpointError


def build_detector(config: DetectorConfig, text_embeddings_KD: Tensor, *, seed: int = 0) -> TwoStageDetector:
    """A new detector on the CPU with the vocabulary of `text_embeddings_KD` [K, D] (rows of any length).

    The same seed gives the same weights; the global random state is left as it was.
    Raises ValueError where the bank's width is not the projection's.
    """
    if text_embeddings_KD.shape[1] != config.projection.embedding_dim:
        raise ValueError(
            f"text bank has width {text_embeddings_KD.shape[1]}, the projection {config.projection.embedding_dim}"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _assemble(config, text_embeddings_KD)


def empty_detector(config: DetectorConfig, num_classes: int) -> TwoStageDetector:
    """A detector whose parameters have shapes but no values yet (device "meta"), to be loaded with `assign=True`."""
    with torch.device("meta"):
        return _assemble(config, torch.empty(num_classes, config.projection.embedding_dim))


def load_values(model: TwoStageDetector, tensors: Mapping[str, Tensor]) -> None:
    """Give every tensor of an `empty_detector` its value; names and shapes must be exactly the model's."""
    trainable = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.load_state_dict(tensors, assign=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(trainable[name])


def _assemble(config: DetectorConfig, text_KD: Tensor) -> TwoStageDetector:
    with torch.device("cpu"):
        pixels = PixelNormalizer(config.pixels)
    network = _network(config.backbone)
    backbone = _backbone(config.backbone, network)
    # The RPN's extra level is too coarse for the heads.
    levels = len(config.backbone.out_stages)
    strides, channels = backbone.strides[:levels], backbone.channels[0]
    trunk = _trunk(config.roi, config.backbone, strides, channels, network)
    roi_head = RoIHead(
        trunk=trunk,
        projection=build_projection(trunk.features, config.projection),
        classifier=CosineClassifier(text_KD, scale=config.classifier.scale, bias=config.classifier.bias),
        box_regressor=BoxRegressor(trunk.features),
    )
    mask_head = None
    if config.mask is not None:
        mask_head = MaskHead(
            _pooler(config.mask.resolution, config.roi, strides),
            channels,
            channels=config.mask.channels,
            convolutions=config.mask.convolutions,
        )
    return TwoStageDetector(
        config=config,
        pixels=pixels,
        backbone=backbone,
        rpn=RegionProposalNetwork(channels, backbone.strides, config.rpn),
        roi_head=roi_head,
        mask_head=mask_head,
    )


def _network(config: BackboneConfig) -> StagedNetwork | None:
    if config.network is None:
        return None
    # Never on the device "meta": these networks keep tables that no checkpoint holds.
    wanted = torch.get_default_device().type != "meta"
    with torch.device("cpu"):
        network = staged_network(config.network, values=wanted)
    if config.channels != network.channels[: len(config.channels)]:
        raise CheckpointError(
            f"{config.network} has channels {network.channels}, the configuration {config.channels}: "
            "make it with ovbridge.detector.with_network, or write the checkpoint again"
        )
    return network


def _backbone(config: BackboneConfig, network: StagedNetwork | None) -> ResNet | LibraryBody | PyramidBackbone:
    body = _resnet(config) if network is None else _library_body(config, network)
    if config.pyramid is None:
        return body
    return PyramidBackbone(body, channels=config.pyramid.channels, extra_level=config.pyramid.extra_level)


def _library_body(config: BackboneConfig, network: StagedNetwork) -> LibraryBody:
    with torch.device("cpu"):
        return LibraryBody(
            network,
            out_stages=config.out_stages,
            freeze_at=config.freeze_at,
            normalise_outputs=config.pyramid is not None,
        )


def _resnet(config: BackboneConfig) -> ResNet:
    return ResNet(
        stem_channels=config.stem_channels,
        depths=config.depths,
        channels=config.channels,
        out_stages=config.out_stages,
        block=config.block,
        norm=config.norm,
        stride_in_1x1=config.stride_in_1x1,
        freeze_at=config.freeze_at,
    )


def _pooler(resolution: int, roi: RoiConfig, strides: tuple[int, ...]) -> RegionPooler:
    return RegionPooler(
        resolution=resolution,
        strides=strides,
        canonical_size=roi.canonical_size,
        canonical_stride=roi.canonical_stride,
    )


def _trunk(
    roi: RoiConfig,
    backbone: BackboneConfig,
    strides: tuple[int, ...],
    channels: int,
    network: StagedNetwork | None,
) -> Trunk:
    if roi.stage5 is not None and network is not None:
        with torch.device("cpu"):
            return LibraryTrunk(_pooler(roi.stage5.resolution, roi, strides), network)
    if roi.stage5 is not None:
        return Stage5Trunk(
            _pooler(roi.stage5.resolution, roi, strides),
            channels,
            channels=roi.stage5.channels,
            depth=roi.stage5.depth,
            norm=backbone.norm,
            stride_in_1x1=backbone.stride_in_1x1,
        )
    assert roi.fully_connected is not None
    return FullyConnectedTrunk(
        _pooler(roi.fully_connected.resolution, roi, strides), channels, widths=roi.fully_connected.widths
    )


def to_weight_transfer(
    model: TwoStageDetector, transfer: TransferConfig | None = None, *, seed: int = 0
) -> TwoStageDetector:
    """The same detector (the same parameter objects) with a weight-transfer projection on its linear one.

    The linear weight and bias are kept, and frozen unless `transfer` says otherwise; the new layers start as
    `transfer.start` says.
    Raises ValueError if the projection is transferred already, or its hidden width too small for an identity start.
    """
    linear_projection = model.roi_head.projection
    if not isinstance(linear_projection, LinearProjection):
        raise ValueError("the projection of this detector is transferred already")
    config = replace(model.config, projection=replace(model.config.projection, transfer=transfer or TransferConfig()))
    linear = linear_projection.linear
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        projection = build_projection(linear.in_features, config.projection)
    assert isinstance(projection, WeightTransferProjection)
    projection.to(linear.weight.device)
    assert config.projection.transfer is not None
    projection.linear = linear.requires_grad_(not config.projection.transfer.freeze_distilled)
    if config.projection.transfer.start == "identity":
        projection.start_at_identity()
    projection.train(model.training)
    head = model.roi_head
    transferred = TwoStageDetector(
        config=config,
        pixels=model.pixels,
        backbone=model.backbone,
        rpn=model.rpn,
        roi_head=RoIHead(
            trunk=head.trunk, projection=projection, classifier=head.classifier, box_regressor=head.box_regressor
        ),
        mask_head=model.mask_head,
    )
    return transferred.train(model.training)
