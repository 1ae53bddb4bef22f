"""The whole detector as one ONNX graph: pictures and a vocabulary in, boxes with scores and class ids out.

Legend: B images, P proposals an image, V real proposals, F region feature, D embedding, K names, N detections.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from ovbridge.detector import DetectorMetadata, TwoStageDetector
from ovbridge.detector.roi_head import FullyConnectedTrunk, Stage5Trunk
from ovbridge.errors import ConfigError
from ovbridge.export import network
from ovbridge.export.graph import IR_VERSION, OPSET, Graph
from ovbridge.export.proposals import ProposalValues, clipped, decoded, pooled_regions, propose
from ovbridge.export.selection import (
    CANDIDATES_PER_DETECTION,
    FinalValues,
    best_pairs,
    select,
    unit_rows,
)

REGIONS_AT_ONCE = 128
"""Regions that a residual region head takes at a time: a thousand at once would fill gigabytes."""


def detector_graph(
    model: TwoStageDetector, metadata: DetectorMetadata, *, half: bool = False, opset: int = OPSET
) -> onnx.ModelProto:
    """The detector as an ONNX model.

    Inputs: `images` uint8 [B, H, W, 3] RGB, resized and padded with anything; `image_sizes` int64 [B, 2], the height
    and width of each without padding; `vocabulary` float32 [K, D], rows of any length, by default the stored text
    bank; `score_threshold` float32 [1], by default the one that the detector is evaluated with.
    Outputs: `boxes` float32 [N, 4] xyxy in pixels of the resized image, `scores` [N], `class_ids` int64 [N], rows of
    the vocabulary, `image_ids` int64 [N]; `masks` float32 [N, S, S], probabilities over each box, if it has masks.
    With `half` the networks compute and are stored in fp16; boxes and scores stay in fp32.
    Raises ConfigError for a part that has no ONNX form.
    """
    graph = Graph(dtype=np.float16 if half else np.float32)
    with torch.no_grad():
        outputs = _outputs(graph, model)
    for name, value in outputs.items():
        graph.nodes.append(helper.make_node("Identity", [value], [name], name=name))
    bank_KD = model.roi_head.classifier.text_KD.cpu().numpy().astype(np.float32)
    threshold = np.array([model.config.postprocess.score_threshold], np.float32)
    defaults = [
        numpy_helper.from_array(bank_KD, "vocabulary"),
        numpy_helper.from_array(threshold, "score_threshold"),
    ]
    side = 2 * model.config.mask.resolution if model.config.mask else 0
    onnx_graph = helper.make_graph(
        graph.nodes,
        "open_vocabulary_detector",
        [
            helper.make_tensor_value_info("images", TensorProto.UINT8, ["batch", "height", "width", 3]),
            helper.make_tensor_value_info("image_sizes", TensorProto.INT64, ["batch", 2]),
            helper.make_tensor_value_info("vocabulary", TensorProto.FLOAT, ["names", bank_KD.shape[1]]),
            helper.make_tensor_value_info("score_threshold", TensorProto.FLOAT, [1]),
        ],
        [
            helper.make_tensor_value_info("boxes", TensorProto.FLOAT, ["detections", 4]),
            helper.make_tensor_value_info("scores", TensorProto.FLOAT, ["detections"]),
            helper.make_tensor_value_info("class_ids", TensorProto.INT64, ["detections"]),
            helper.make_tensor_value_info("image_ids", TensorProto.INT64, ["detections"]),
            *([helper.make_tensor_value_info("masks", TensorProto.FLOAT, ["detections", side, side])] if side else []),
        ],
        [*graph.initializers, *defaults],
    )
    proto = helper.make_model(
        onnx_graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=IR_VERSION, producer_name="ovbridge"
    )
    helper.set_model_props(proto, _properties(model, metadata, half))
    return proto


def _outputs(graph: Graph, model: TwoStageDetector) -> dict[str, str]:
    """Reads as the data flow: pixels → backbone → proposals → region head → scores → detections → masks."""
    head = model.roi_head
    sizes_B2 = graph.to_float(graph.add("Gather", "image_sizes", graph.constant([1, 0, 1, 0]), axis=1))
    limits_B14 = graph.add("Unsqueeze", sizes_B2, graph.constant([1]))
    features = network.backbone(graph, model.backbone, _normalised_pixels(graph, model, limits_B14))
    found = propose(graph, model.rpn, features, limits_B14)
    region_VF = _region_features(graph, model, features, found)
    regressed_V4 = decoded(
        graph, found.boxes_V4, network.box_deltas(graph, head.box_regressor, region_VF), model.config.roi.box_weights
    )
    unit_VD = unit_rows(graph, network.projected(graph, head.projection, region_VF))
    query_VD = graph.add("Mul", unit_VD, graph.constant(head.classifier.scale))
    boxes_BP4 = clipped(graph, _by_image(graph, regressed_V4, found, 4), limits_B14)
    bias = head.classifier.bias
    config = model.config.postprocess
    scores_BC, regions_BC, class_ids_BC = best_pairs(
        graph,
        _by_image(graph, query_VD, found, head.classifier.text_KD.shape[1]),
        found.real_BP,
        unit_rows(graph, "vocabulary"),
        None if bias is None else float(bias),
        CANDIDATES_PER_DETECTION * config.max_detections,
    )
    final = select(graph, graph.take(boxes_BP4, regions_BC), scores_BC, class_ids_BC, "score_threshold", config)
    outputs = {
        "boxes": final.boxes_N4,
        "scores": final.scores_N,
        "class_ids": final.class_ids_N,
        "image_ids": final.images_N,
    }
    return outputs | _masks(graph, model, features, final)


def _normalised_pixels(graph: Graph, model: TwoStageDetector, limits_B14: str) -> str:
    """uint8 [B, H, W, 3] → [B, 3, H', W'] in the networks' type: normalised, zero outside each picture."""
    config = model.config.pixels
    rgb = graph.to_float("images")
    if config.order == "bgr":
        rgb = graph.add("Gather", rgb, graph.constant([2, 1, 0]), axis=3)
    values = graph.add(
        "Div", graph.add("Sub", rgb, graph.constant(list(config.mean))), graph.constant(list(config.std))
    )
    width_B1 = graph.add("Squeeze", graph.columns(limits_B14, 0, 1), graph.constant([2]))
    height_B1 = graph.add("Squeeze", graph.columns(limits_B14, 1, 2), graph.constant([2]))
    rows = graph.add("Less", graph.to_float(graph.range(graph.size("images", 1))), height_B1)
    columns = graph.add("Less", graph.to_float(graph.range(graph.size("images", 2))), width_B1)
    inside = graph.add(
        "And",
        graph.add("Unsqueeze", rows, graph.constant([2, 3])),
        graph.add("Unsqueeze", columns, graph.constant([1, 3])),
    )
    values = graph.add("Where", inside, values, graph.constant(0.0))
    pixels = graph.to_network(graph.add("Transpose", values, perm=[0, 3, 1, 2]))
    if config.size_divisibility <= 1:
        return pixels
    multiple = graph.constant([config.size_divisibility])
    missing = [graph.add("Mod", graph.add("Neg", graph.size("images", axis)), multiple) for axis in (1, 2)]
    none = graph.constant([0])
    return graph.add("Pad", pixels, graph.add("Concat", *([none] * 6), *missing, axis=0))


def _region_features(graph: Graph, model: TwoStageDetector, features: list[str], found: ProposalValues) -> str:
    """[V, F] in the networks' type."""
    trunk = model.roi_head.trunk
    if isinstance(trunk, FullyConnectedTrunk):
        return pooled_regions(
            graph,
            trunk.pooler,
            features,
            found.boxes_V4,
            found.images_V,
            lambda pooled: network.fully_connected(graph, trunk, pooled),
        )
    if not isinstance(trunk, Stage5Trunk):
        raise ConfigError(f"a {type(trunk).__name__} head cannot be exported to ONNX yet: use a residual one")
    return _stage5_features(graph, trunk, features, found)


def _stage5_features(graph: Graph, trunk: Stage5Trunk, features: list[str], found: ProposalValues) -> str:
    step = graph.constant([REGIONS_AT_ONCE])
    total = graph.size(found.places_V, 0)
    trips = graph.add("Div", graph.add("Add", total, graph.constant([REGIONS_AT_ONCE - 1])), step)
    nothing = graph.to_network(graph.add("Expand", graph.constant(0.0), graph.shape(0, trunk.features)))

    def part(inner: Graph, iteration: str, state: list[str]) -> tuple[str | None, list[str], list[str]]:
        start = inner.add("Mul", inner.add("Unsqueeze", iteration, inner.constant([0])), step)
        end = inner.add("Add", start, step)
        boxes, images = inner.rows(found.boxes_V4, start, end), inner.rows(found.images_V, start, end)
        region = pooled_regions(
            inner,
            trunk.pooler,
            features,
            boxes,
            images,
            lambda pooled: network.stage_blocks(inner, trunk.stage5, pooled),
        )
        region = inner.add("ReduceMean", region, inner.constant([2, 3]), keepdims=0)
        return None, [inner.add("Concat", state[0], region, axis=0)], []

    kind = TensorProto.FLOAT if graph.dtype is np.float32 else TensorProto.FLOAT16
    return graph.loop(trips, [(nothing, kind)], part)[0]


def _by_image(graph: Graph, values_VX: str, found: ProposalValues, width: int) -> str:
    """[V, X] → [B, P, X], zero where a proposal is not real."""
    shape_BP = graph.add("Shape", found.real_BP)
    count = graph.add("ReduceProd", shape_BP, keepdims=1)
    zeros = graph.add("Expand", graph.constant(0.0), graph.shape(count, width))
    spread = graph.add("ScatterND", zeros, graph.add("Unsqueeze", found.places_V, graph.constant([1])), values_VX)
    return graph.add("Reshape", spread, graph.shape(shape_BP, width))


def _masks(graph: Graph, model: TwoStageDetector, features: list[str], final: FinalValues) -> dict[str, str]:
    head = model.mask_head
    if head is None:
        return {}
    probabilities = pooled_regions(
        graph,
        head.pooler,
        features,
        final.boxes_N4,
        final.images_N,
        lambda pooled: network.mask_probabilities(graph, head, pooled),
    )
    return {"masks": probabilities}


def _properties(model: TwoStageDetector, metadata: DetectorMetadata, half: bool) -> dict[str, str]:
    """What the file says of itself, as texts; lists and records are JSON."""
    short_side, long_side = metadata.test_size or (800, 1333)
    preprocessing: dict[str, Any] = {
        "input": "uint8 RGB [batch, height, width, 3]",
        "short_side": short_side,
        "long_side": long_side,
        "resize": "antialiased bilinear (Pillow), rounding half up",
        "padding": "right and below, any value; image_sizes says (height, width) without it",
        "normalisation": "inside the graph",
    }
    return {
        "format": "ovbridge-onnx-1",
        "names": json.dumps(list(metadata.names)),
        "embedding_width": str(model.roi_head.classifier.text_KD.shape[1]),
        "text_encoder": metadata.text_encoder,
        "prompt_templates": json.dumps(list(metadata.templates)),
        "preprocessing": json.dumps(preprocessing),
        "architecture": model.config.name,
        "stage": metadata.stage,
        "precision": "fp16" if half else "fp32",
        "max_detections": str(model.config.postprocess.max_detections),
        "score_threshold": str(model.config.postprocess.score_threshold),
        "nms_iou": str(model.config.postprocess.nms_iou),
    }
