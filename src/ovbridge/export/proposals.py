"""The region proposal network's choice of boxes, and pooling them, as ONNX operators.

Legend: B images, L levels, N candidates of all levels, P proposals an image, V proposals that are real, of all images.
Every image has P places; where it has fewer proposals the rest are not real and are never pooled.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import TensorProto

from ovbridge.detector.anchors import cell_anchors
from ovbridge.detector.boxes import LOG_SCALE_LIMIT, DeltaWeights
from ovbridge.detector.pooling import RegionPooler
from ovbridge.detector.rpn import DELTA_WEIGHTS, RegionProposalNetwork
from ovbridge.export.graph import Graph
from ovbridge.export.network import rpn_heads

ABSENT = -3e38
"""The score of a candidate that is none."""


@dataclass(frozen=True, kw_only=True)
class ProposalValues:
    """What `propose` puts out."""

    real_BP: str  # noqa: N815 - dense-maths suffix
    """[B, P] bool."""
    places_V: str  # noqa: N815 - dense-maths suffix
    """[V] int64 indices of the real ones in B * P."""
    boxes_V4: str  # noqa: N815 - dense-maths suffix
    """[V, 4] float32 in pixels of the network's input."""
    images_V: str  # noqa: N815 - dense-maths suffix
    """[V] int64."""


def propose(graph: Graph, rpn: RegionProposalNetwork, features: Sequence[str], limits_B14: str) -> ProposalValues:
    """The best boxes of each image, clipped to `limits_B14` (w, h, w, h), as `RegionProposalNetwork.select` does."""
    config = rpn.config
    boxes, logits, levels = [], [], []
    for level, (feature, stride, sizes) in enumerate(zip(features, rpn.strides, config.anchor_sizes, strict=True)):
        level_logits, deltas = rpn_heads(graph, rpn.conv, rpn.objectness, rpn.deltas, feature)
        anchors = _anchors(graph, feature, stride, cell_anchors(sizes, config.aspect_ratios).numpy())
        pre_nms = max(config.pre_nms_test, config.post_nms_test)
        count = graph.add("Min", graph.constant([pre_nms]), graph.size(level_logits, 1))
        best, index = graph.top(level_logits, count)
        chosen = graph.add("Gather", anchors, index, axis=0)
        boxes.append(decoded(graph, chosen, graph.take(deltas, index), DELTA_WEIGHTS))
        logits.append(best)
        levels.append(graph.add("Expand", graph.constant(level), graph.add("Shape", best)))
    boxes_BN4 = clipped(graph, graph.add("Concat", *boxes, axis=1), limits_B14)
    logits_BN, levels_BN = graph.add("Concat", *logits, axis=1), graph.add("Concat", *levels, axis=1)
    usable = nonempty(graph, boxes_BN4)
    kept_BN = _suppressed(graph, boxes_BN4, logits_BN, levels_BN, usable, len(boxes), config.nms_iou)
    count = graph.add("Min", graph.constant([config.post_nms_test]), graph.size(kept_BN, 1))
    scores_BP, index_BP = graph.top(kept_BN, count)
    real_BP = graph.add("Greater", scores_BP, graph.constant(ABSENT / 2))
    places = graph.true_positions(graph.reshape(real_BP, -1))
    return ProposalValues(
        real_BP=real_BP,
        places_V=places,
        boxes_V4=graph.add("Gather", graph.reshape(graph.take(boxes_BN4, index_BP), -1, 4), places, axis=0),
        images_V=graph.add("Div", places, count),
    )


def decoded(graph: Graph, reference: str, deltas: str, weights: DeltaWeights) -> str:
    """Boxes [..., 4] from reference boxes and deltas, as `detector.boxes.decode_boxes`."""
    low, high = graph.columns(reference, 0, 2), graph.columns(reference, 2, 4)
    size = graph.add("Sub", high, low)
    half = graph.constant(0.5)
    centre = graph.add("Add", low, graph.add("Mul", size, half))
    scaled = graph.add("Div", deltas, graph.constant(list(weights)))
    centre = graph.add("Add", graph.add("Mul", graph.columns(scaled, 0, 2), size), centre)
    stretch = graph.add("Exp", graph.add("Min", graph.columns(scaled, 2, 4), graph.constant(LOG_SCALE_LIMIT)))
    reach = graph.add("Mul", graph.add("Mul", stretch, half), size)
    return graph.add("Concat", graph.add("Sub", centre, reach), graph.add("Add", centre, reach), axis=-1)


def clipped(graph: Graph, boxes: str, limits: str) -> str:
    """Boxes limited to their image; `limits` (w, h, w, h) must broadcast to them."""
    return graph.add("Min", graph.add("Max", boxes, graph.constant(0.0)), limits)


def nonempty(graph: Graph, boxes: str) -> str:
    """Bool, one dimension less: positive width and height."""
    bigger = graph.add("Greater", graph.columns(boxes, 2, 4), graph.columns(boxes, 0, 2))
    smaller_side = graph.add(
        "ReduceMin", graph.add("Cast", bigger, to=TensorProto.INT32), graph.constant([-1]), keepdims=0
    )
    return graph.add("Cast", smaller_side, to=TensorProto.BOOL)


def pooled_regions(
    graph: Graph,
    pooler: RegionPooler,
    features: Sequence[str],
    boxes_V4: str,
    images_V: str,
    head: Callable[[str], str],
) -> str:
    """`head` of every region's pooled grid [V, C, S, S], each pooled from the level that suits its size."""
    maps = [graph.from_network(feature) for feature in features[: len(pooler.strides)]]
    if len(maps) == 1:
        return head(aligned(graph, pooler, maps[0], pooler.strides[0], boxes_V4, images_V))
    level_V = _levels(graph, pooler, boxes_V4)
    pooled, order = [], []
    for level, (feature, stride) in enumerate(zip(maps, pooler.strides, strict=True)):
        index = graph.true_positions(graph.add("Equal", level_V, graph.constant(level)))
        members = (graph.add("Gather", values, index, axis=0) for values in (boxes_V4, images_V))
        pooled.append(aligned(graph, pooler, feature, stride, *members))
        order.append(index)
    # Back into the order of the regions only after the head, whose output is far smaller than what was pooled.
    by_level = head(graph.add("Concat", *pooled, axis=0))
    order_V = graph.add("Concat", *order, axis=0)
    place_V = graph.add("ScatterElements", order_V, order_V, graph.range(graph.size(order_V, 0)), axis=0)
    return graph.add("Gather", by_level, place_V, axis=0)


def aligned(graph: Graph, pooler: RegionPooler, feature: str, stride: int, boxes: str, images: str) -> str:
    """RoIAlign of one level in float32, given back in the networks' type."""
    pooled = graph.add(
        "RoiAlign",
        feature,
        boxes,
        images,
        mode="avg",
        coordinate_transformation_mode="half_pixel",
        output_height=pooler.resolution,
        output_width=pooler.resolution,
        sampling_ratio=0,
        spatial_scale=1.0 / stride,
    )
    return graph.to_network(pooled)


def _levels(graph: Graph, pooler: RegionPooler, boxes_V4: str) -> str:
    """[V] int64, as `RegionPooler.levels_of`: comparing with powers of two instead of taking a logarithm."""
    sides = graph.add("Sub", graph.columns(boxes_V4, 2, 4), graph.columns(boxes_V4, 0, 2))
    area = graph.add("ReduceProd", sides, graph.constant([-1]), keepdims=0)
    ratio = graph.add("Div", graph.add("Sqrt", area), graph.constant(pooler.canonical_size))
    ratio = graph.add("Add", ratio, graph.constant(1e-8))
    low, high = round(math.log2(pooler.strides[0])), round(math.log2(pooler.strides[-1]))
    steps = [2.0 ** (level - pooler.canonical_level) for level in range(low + 1, high + 1)]
    reached = graph.add("GreaterOrEqual", graph.add("Unsqueeze", ratio, graph.constant([-1])), graph.constant(steps))
    counts = graph.add("Cast", reached, to=TensorProto.INT64)
    return graph.add("ReduceSum", counts, graph.constant([-1]), keepdims=0)


def _anchors(graph: Graph, feature: str, stride: int, cell_A4: np.ndarray) -> str:
    """[H * W * A, 4] anchors of one level in pixels, row by row, all of a cell together."""
    step = graph.constant(float(stride))
    y, x = (graph.add("Mul", graph.to_float(graph.range(graph.size(feature, axis))), step) for axis in (2, 3))
    down = graph.add("Mul", graph.reshape(y, -1, 1, 1, 1), graph.constant([0.0, 1.0, 0.0, 1.0]))
    right = graph.add("Mul", graph.reshape(x, 1, -1, 1, 1), graph.constant([1.0, 0.0, 1.0, 0.0]))
    shifts = graph.add("Add", down, right)
    return graph.reshape(graph.add("Add", shifts, graph.constant(cell_A4)), -1, 4)


def _suppressed(
    graph: Graph, boxes_BN4: str, logits_BN: str, levels_BN: str, usable_BN: str, levels: int, iou: float
) -> str:
    """[B, N] logits of those that survive suppression within their level, ABSENT for all others."""
    absent = graph.constant(ABSENT)
    own = graph.add(
        "Equal", graph.add("Unsqueeze", levels_BN, graph.constant([1])), graph.constant(np.arange(levels)[:, None])
    )
    counts = graph.add("And", own, graph.add("Unsqueeze", usable_BN, graph.constant([1])))
    scores_BLN = graph.add("Where", counts, graph.add("Unsqueeze", logits_BN, graph.constant([1])), absent)
    selected = graph.add(
        "NonMaxSuppression",
        boxes_BN4,
        scores_BLN,
        graph.size(logits_BN, 1),
        graph.constant([iou], np.float32),
        graph.constant([ABSENT / 2], np.float32),
    )
    where = graph.add("Gather", selected, graph.constant([0, 2]), axis=1)
    nothing = graph.add("Expand", absent, graph.add("Shape", logits_BN))
    return graph.add("ScatterND", nothing, where, graph.add("GatherND", logits_BN, where))
