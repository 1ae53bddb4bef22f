"""Scores over a vocabulary of any length, and the final detections, as ONNX operators.

Legend: B images, P proposals an image, D embedding, K rows of the vocabulary, C candidates an image, T detections an
image, N detections of all images. No more than P * `COLUMNS_AT_ONCE` scores an image exist at a time.
"""

from __future__ import annotations

from dataclasses import dataclass

from onnx import TensorProto

from ovbridge.detector.config import PostprocessConfig
from ovbridge.detector.postprocess import COLUMNS_AT_ONCE
from ovbridge.export.graph import Graph
from ovbridge.export.proposals import nonempty

CANDIDATES_PER_DETECTION = 16
"""The best (region, name) pairs that suppression looks at, a detection asked for."""

UNUSABLE = -1.0
"""The score of a pair that is not to be found."""


@dataclass(frozen=True, kw_only=True)
class FinalValues:
    """What `select` puts out."""

    boxes_N4: str  # noqa: N815 - dense-maths suffix
    """[N, 4] float32 in pixels of the network's input, image by image, best first."""
    scores_N: str  # noqa: N815 - dense-maths suffix
    """[N] float32."""
    class_ids_N: str  # noqa: N815 - dense-maths suffix
    """[N] int64."""
    images_N: str  # noqa: N815 - dense-maths suffix
    """[N] int64."""


def unit_rows(graph: Graph, rows: str) -> str:
    """Rows of length one along the last axis, as torch's `normalize`."""
    length = graph.add("ReduceL2", rows, graph.constant([-1]), keepdims=1)
    return graph.add("Div", rows, graph.add("Max", length, graph.constant(1e-12)))


def best_pairs(
    graph: Graph, query_BPD: str, real_BP: str, text_KD: str, bias: float | None, limit: int
) -> tuple[str, str, str]:
    """The `limit` best pairs of region and name: scores [B, C], region [B, C] and row [B, C] int64.

    Where the vocabulary is empty, one unusable pair an image.
    """
    total_1, width_1 = graph.size(text_KD, 0), graph.constant([COLUMNS_AT_ONCE])
    batch = graph.size(query_BPD, 0)
    real_BP1 = graph.add("Unsqueeze", real_BP, graph.constant([-1]))
    one_each = graph.shape(batch, 1)
    first_scores = graph.add("Expand", graph.constant(UNUSABLE), one_each)
    first_pairs = graph.add("Expand", graph.constant(0), one_each)
    trips = graph.add("Div", graph.add("Add", total_1, graph.constant([COLUMNS_AT_ONCE - 1])), width_1)

    def chunk(inner: Graph, iteration: str, state: list[str]) -> tuple[str | None, list[str], list[str]]:
        start = inner.add("Mul", inner.add("Unsqueeze", iteration, inner.constant([0])), width_1)
        part = inner.rows(text_KD, start, inner.add("Add", start, width_1))
        logits = inner.add("MatMul", query_BPD, inner.add("Transpose", part, perm=[1, 0]))
        if bias is not None:
            logits = inner.add("Add", logits, inner.constant(bias))
        scores = inner.add("Where", real_BP1, inner.add("Sigmoid", logits), inner.constant(UNUSABLE))
        flat = inner.reshape(scores, batch, -1)
        best, index = inner.top(flat, inner.add("Min", inner.constant([limit]), inner.size(flat, 1)))
        columns = inner.size(part, 0)
        region = inner.add("Div", index, columns)
        row = inner.add("Add", inner.add("Mod", index, columns), start)
        pairs = inner.add("Add", inner.add("Mul", region, total_1), row)
        all_scores = inner.add("Concat", state[0], best, axis=1)
        all_pairs = inner.add("Concat", state[1], pairs, axis=1)
        kept, place = inner.top(all_scores, inner.add("Min", inner.constant([limit]), inner.size(all_scores, 1)))
        return None, [kept, inner.add("GatherElements", all_pairs, place, axis=1)], []

    carried = [(first_scores, TensorProto.FLOAT), (first_pairs, TensorProto.INT64)]
    scores_BC, pairs_BC = graph.loop(trips, carried, chunk)
    divisor_1 = graph.add("Max", total_1, graph.constant([1]))
    return scores_BC, graph.add("Div", pairs_BC, divisor_1), graph.add("Mod", pairs_BC, divisor_1)


def select(
    graph: Graph,
    boxes_BC4: str,
    scores_BC: str,
    class_ids_BC: str,
    threshold: str,
    config: PostprocessConfig,
) -> FinalValues:
    """Suppression within classes, best first, until `config.max_detections` an image are found or none is left."""
    best_BT, index_BT = _greedy(graph, boxes_BC4, scores_BC, class_ids_BC, threshold, config)
    boxes_BT4 = graph.take(boxes_BC4, index_BT)
    found = graph.add("And", graph.add("Greater", best_BT, graph.constant(UNUSABLE)), nonempty(graph, boxes_BT4))
    places = graph.true_positions(graph.reshape(found, -1))

    def flat(values: str, *shape: int) -> str:
        return graph.add("Gather", graph.reshape(values, -1, *shape), places, axis=0)

    return FinalValues(
        boxes_N4=flat(boxes_BT4, 4),
        scores_N=flat(best_BT),
        class_ids_N=flat(graph.take(class_ids_BC, index_BT)),
        images_N=graph.add("Div", places, graph.size(index_BT, 1)),
    )


def _greedy(
    graph: Graph, boxes_BC4: str, scores_BC: str, class_ids_BC: str, threshold: str, config: PostprocessConfig
) -> tuple[str, str]:
    """Scores and candidate indices [B, T] in the order of choice; UNUSABLE where an image had no more.

    One round takes the best candidate left and drops those of its class that overlap it, so a picture with three
    things costs three rounds, whatever the number of candidates.
    """
    unusable = graph.constant(UNUSABLE)
    alive = graph.add("Where", graph.add("Greater", scores_BC, threshold), scores_BC, unusable)
    low, high = graph.columns(boxes_BC4, 0, 2), graph.columns(boxes_BC4, 2, 4)
    area = _area(graph, low, high)
    numbers = graph.range(graph.size(scores_BC, 1))

    def one(inner: Graph, _: str, state: list[str]) -> tuple[str | None, list[str], list[str]]:
        best_B1 = inner.add("ReduceMax", state[0], inner.constant([1]), keepdims=1)
        index_B1 = inner.add("ArgMax", state[0], axis=1, keepdims=1)

        def chosen(values: str) -> str:
            return inner.take(values, index_B1)

        overlap = _area(
            inner, inner.add("Max", chosen(low), low), inner.add("Min", chosen(high), high), at_least_zero=True
        )
        union = inner.add("Sub", inner.add("Add", chosen(area), area), overlap)
        covered = inner.add("Greater", inner.add("Div", overlap, union), inner.constant(config.nms_iou))
        dropped = inner.add("And", covered, inner.add("Equal", chosen(class_ids_BC), class_ids_BC))
        gone = inner.add("Or", dropped, inner.add("Equal", numbers, index_B1))
        left = inner.add("Where", gone, unusable, state[0])
        top = inner.add("ReduceMax", left, keepdims=0)
        go_on = inner.add("Greater", top, unusable)
        squeeze = inner.constant([1])
        return go_on, [left], [inner.add("Squeeze", best_B1, squeeze), inner.add("Squeeze", index_B1, squeeze)]

    _, best_TB, index_TB = graph.loop(
        graph.constant([config.max_detections]),
        [(alive, TensorProto.FLOAT)],
        one,
        collected=[TensorProto.FLOAT, TensorProto.INT64],
    )
    return graph.add("Transpose", best_TB, perm=[1, 0]), graph.add("Transpose", index_TB, perm=[1, 0])


def _area(graph: Graph, low: str, high: str, *, at_least_zero: bool = False) -> str:
    """[B, C] from corners [B, C, 2]."""
    sides = graph.add("Sub", high, low)
    if at_least_zero:
        sides = graph.add("Max", sides, graph.constant(0.0))
    return graph.add("ReduceProd", sides, graph.constant([-1]), keepdims=0)
