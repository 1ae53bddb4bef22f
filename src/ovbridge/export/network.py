"""The detector's networks as ONNX operators, with batch norms folded into the convolutions before them.

Legend: B images, R regions, F region feature, D embedding. Folding happens in float64, so that it costs no accuracy.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from ovbridge.detector.backbone import BasicBlock, BottleneckBlock, ConvNorm, FrozenBatchNorm, PyramidBackbone, ResNet
from ovbridge.detector.mask_head import MaskHead
from ovbridge.detector.projection import Projection, WeightTransferProjection
from ovbridge.detector.roi_head import BoxRegressor, FullyConnectedTrunk
from ovbridge.errors import ConfigError
from ovbridge.export.graph import Graph


def backbone(graph: Graph, module: nn.Module, pixels: str) -> list[str]:
    """Normalised pixels [B, 3, H, W] → one map a level, finest first; ConfigError for a foreign backbone."""
    if isinstance(module, PyramidBackbone):
        return _pyramid(graph, module, backbone(graph, module.body, pixels))
    if not isinstance(module, ResNet):
        raise ConfigError(f"a {type(module).__name__} backbone cannot be exported to ONNX yet: use a residual one")
    x = graph.add("Relu", _conv_norm(graph, module.stem, pixels))
    x = graph.add("MaxPool", x, kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    features = []
    for stage, blocks in module.stages.items():
        x = stage_blocks(graph, cast(nn.Sequential, blocks), x)
        if int(stage) in module.out_stages:
            features.append(x)
    return features


def stage_blocks(graph: Graph, blocks: Iterable[nn.Module], x: str) -> str:
    """Residual blocks one after the other."""
    for block in blocks:
        x = _block(graph, cast(BasicBlock | BottleneckBlock, block), x)
    return x


def rpn_heads(graph: Graph, conv: nn.Conv2d, objectness: nn.Conv2d, deltas: nn.Conv2d, x: str) -> tuple[str, str]:
    """One map [B, C, H, W] → objectness [B, H * W * A] and deltas [B, H * W * A, 4], float32."""
    hidden = graph.add("Relu", convolution(graph, conv, x))
    batch = graph.size(x, 0)
    logits = graph.add("Transpose", convolution(graph, objectness, hidden), perm=[0, 2, 3, 1])
    moves = graph.add("Transpose", convolution(graph, deltas, hidden), perm=[0, 2, 3, 1])
    return (
        graph.from_network(graph.reshape(logits, batch, -1)),
        graph.from_network(graph.reshape(moves, batch, -1, 4)),
    )


def fully_connected(graph: Graph, trunk: FullyConnectedTrunk, pooled: str) -> str:
    """[R, C, S, S] → [R, F]."""
    x = graph.add("Flatten", pooled, axis=1)
    for layer in trunk.layers:
        x = graph.add("Relu", linear(graph, cast(nn.Linear, layer), x))
    return x


def box_deltas(graph: Graph, regressor: BoxRegressor, region_RF: str) -> str:
    """[R, F] → [R, 4] float32."""
    hidden = graph.add("Relu", linear(graph, regressor.fc1, region_RF))
    return graph.from_network(linear(graph, regressor.fc2, hidden))


def projected(graph: Graph, projection: Projection, region_RF: str) -> str:
    """[R, F] → [R, D] float32, not normalised."""
    if not isinstance(projection, WeightTransferProjection):
        return graph.from_network(linear(graph, projection.linear, region_RF))
    # The transferred weight depends on weights alone: it is computed once, here.
    with torch.no_grad():
        weight_DF = projection.transferred_weight()
    main = graph.add("MatMul", region_RF, graph.weight(weight_DF.T))
    if projection.residual1 is None or projection.residual2 is None:
        return graph.from_network(main)
    hidden = linear(graph, projection.residual1, region_RF)
    skip = linear(graph, projection.residual2, graph.add("LeakyRelu", hidden, alpha=projection.negative_slope))
    return graph.from_network(graph.add("Add", main, skip))


def mask_probabilities(graph: Graph, head: MaskHead, pooled: str) -> str:
    """[R, C, S, S] → [R, 2 S, 2 S] float32 in [0, 1]."""
    x = pooled
    for conv in head.convs:
        x = graph.add("Relu", convolution(graph, cast(nn.Conv2d, conv), x))
    upsample = head.upsample
    x = graph.add(
        "ConvTranspose",
        x,
        graph.weight(upsample.weight),
        graph.weight(cast(Tensor, upsample.bias)),
        kernel_shape=[2, 2],
        strides=[2, 2],
    )
    x = convolution(graph, head.predictor, graph.add("Relu", x))
    return graph.add("Sigmoid", graph.from_network(graph.add("Squeeze", x, graph.constant([1]))))


def convolution(graph: Graph, conv: nn.Conv2d, x: str) -> str:
    """A plain convolution with bias."""
    return _convolve(graph, x, conv.weight, cast(Tensor, conv.bias), conv.stride[0], cast(int, conv.padding[0]))


def linear(graph: Graph, layer: nn.Linear, x: str) -> str:
    """[R, I] → [R, O]."""
    return graph.add("Gemm", x, graph.weight(layer.weight), graph.weight(layer.bias), transB=1)


def _convolve(graph: Graph, x: str, weight: Tensor, bias: Tensor, stride: int, padding: int) -> str:
    return graph.add(
        "Conv",
        x,
        graph.weight(weight),
        graph.weight(bias),
        kernel_shape=list(weight.shape[2:]),
        strides=[stride, stride],
        pads=[padding] * 4,
    )


def _conv_norm(graph: Graph, conv: ConvNorm, x: str) -> str:
    norm = conv.norm
    mean, variance = cast(Tensor, norm.running_mean).double(), cast(Tensor, norm.running_var).double()
    assert isinstance(norm, FrozenBatchNorm) or norm.affine
    scale = norm.weight.double() * (variance + norm.eps).rsqrt()
    shift = norm.bias.double() - mean * scale
    return _convolve(graph, x, conv.weight.double() * scale[:, None, None, None], shift, conv.stride, conv.padding)


def _block(graph: Graph, block: BasicBlock | BottleneckBlock, x: str) -> str:
    skip = x if block.shortcut is None else _conv_norm(graph, block.shortcut, x)
    convs = [block.conv1, block.conv2, *([block.conv3] if isinstance(block, BottleneckBlock) else [])]
    for conv in convs[:-1]:
        x = graph.add("Relu", _conv_norm(graph, conv, x))
    return graph.add("Relu", graph.add("Add", _conv_norm(graph, convs[-1], x), skip))


def _pyramid(graph: Graph, module: PyramidBackbone, features: Sequence[str]) -> list[str]:
    levels: list[str] = []
    top: str | None = None
    for feature, lateral, output in zip(
        reversed(features), reversed(module.lateral), reversed(module.output), strict=True
    ):
        merged = convolution(graph, cast(nn.Conv2d, lateral), feature)
        if top is not None:
            doubled = graph.add(
                "Resize",
                top,
                "",
                graph.constant([1.0, 1.0, 2.0, 2.0]),
                mode="nearest",
                coordinate_transformation_mode="asymmetric",
                nearest_mode="floor",
            )
            merged = graph.add("Add", merged, doubled)
        top = merged
        levels.insert(0, convolution(graph, cast(nn.Conv2d, output), merged))
    if module.extra_level:
        start, end = graph.constant([0, 0]), graph.constant([2**31, 2**31])
        levels.append(graph.add("Slice", levels[-1], start, end, graph.constant([2, 3]), graph.constant([2, 2])))
    return levels
