"""AP50 of OpenImages: only verified classes count in an image, and a group of objects is one object.

The rules of the challenge (storage.googleapis.com/openimages/web/evaluation.html): at IoU 0.5 each detection, best
first, takes the box of its class it overlaps most, if that is still free. One that takes none but lies by half or more
of its own area in a box around a group belongs to that group: the best of a group is right, the others are ignored.
AP is the area below the interpolated precision at every recall reached (VOC 2010), not at 101 points.

Legend: N detections of a class in an image, G boxes.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

IOU = 0.5

Array = np.ndarray[Any, Any]


def class_ap50(ground_truth: Mapping[str, Any], results: Sequence[Mapping[str, Any]]) -> dict[int, float]:
    """Category id → AP50 in percent; NaN for a class without a box.

    Args:
        ground_truth: COCO-format dict; images carry `neg_category_ids`, boxes perhaps `is_group_of` (or `iscrowd`).
            Without any `neg_category_ids` every class counts in every image.
        results: COCO result records that passed `result_check`.
    """
    verified = _verified(ground_truth)
    boxes: defaultdict[tuple[int, int], list[tuple[list[float], bool]]] = defaultdict(list)
    total: defaultdict[int, int] = defaultdict(int)
    for a in ground_truth["annotations"]:
        boxes[a["category_id"], a["image_id"]].append((a["bbox"], bool(a.get("is_group_of", a.get("iscrowd", 0)))))
        total[a["category_id"]] += 1
    found: defaultdict[tuple[int, int], list[Mapping[str, Any]]] = defaultdict(list)
    for result in results:
        if verified is None or result["category_id"] in verified[result["image_id"]]:
            found[result["category_id"], result["image_id"]].append(result)
    scores: defaultdict[int, list[float]] = defaultdict(list)
    right: defaultdict[int, list[bool]] = defaultdict(list)
    for (category_id, image_id), group in sorted(found.items()):
        ordered = sorted(group, key=lambda r: -r["score"])
        outcome = matched(
            np.array([r["bbox"] for r in ordered], dtype=np.float64),
            np.array([b for b, _ in boxes[category_id, image_id]], dtype=np.float64).reshape(-1, 4),
            np.array([g for _, g in boxes[category_id, image_id]], dtype=bool),
        )
        for result, is_right in zip(ordered, outcome, strict=True):
            if is_right is not None:
                scores[category_id].append(result["score"])
                right[category_id].append(is_right)
    return {
        c["id"]: 100 * average_precision(scores[c["id"]], right[c["id"]], total[c["id"]])
        if total[c["id"]]
        else float("nan")
        for c in ground_truth["categories"]
    }


def matched(detections_N4: Array, boxes_G4: Array, is_group_G: Array) -> list[bool | None]:
    """[N] right, wrong, or None where a detection is ignored; xywh, detections best first."""
    single_G4, group_G4 = boxes_G4[~is_group_G], boxes_G4[is_group_G]
    overlap_NG = _intersection(detections_N4, single_G4)
    union_NG = _area(detections_N4)[:, None] + _area(single_G4)[None] - overlap_NG
    iou_NG = overlap_NG / np.maximum(union_NG, 1e-12)
    inside_NG = _intersection(detections_N4, group_G4) / np.maximum(_area(detections_N4)[:, None], 1e-12)
    taken, group_taken = np.zeros(len(single_G4), bool), np.zeros(len(group_G4), bool)
    outcome: list[bool | None] = []
    for iou_G, inside_G in zip(iou_NG, inside_NG, strict=True):
        best = int(iou_G.argmax()) if len(iou_G) else -1
        if best >= 0 and iou_G[best] >= IOU and not taken[best]:
            taken[best] = True
            outcome.append(True)
            continue
        group = int(inside_G.argmax()) if len(inside_G) else -1
        if group >= 0 and inside_G[group] >= IOU:
            outcome.append(None if group_taken[group] else True)
            group_taken[group] = True
        else:
            outcome.append(False)
    return outcome


def average_precision(scores: Sequence[float], right: Sequence[bool], total: int) -> float:
    """Area below the interpolated precision, in [0, 1], of detections over `total` objects."""
    order = np.argsort(-np.asarray(scores, dtype=np.float64), kind="stable")
    hits = np.asarray(right, dtype=np.float64)[order]
    if not len(hits) or not total:
        return 0.0
    true = np.cumsum(hits)
    recall = np.concatenate([[0.0], true / total, [1.0]])
    precision = np.concatenate([[0.0], true / np.arange(1, len(hits) + 1), [0.0]])
    precision = np.maximum.accumulate(precision[::-1])[::-1]
    return float(np.sum(np.diff(recall) * precision[1:]))


def _verified(ground_truth: Mapping[str, Any]) -> dict[int, set[int]] | None:
    if not any("neg_category_ids" in image for image in ground_truth["images"]):
        return None
    found = {i["id"]: {*i.get("neg_category_ids", ()), *i.get("pos_category_ids", ())} for i in ground_truth["images"]}
    for annotation in ground_truth["annotations"]:
        found[annotation["image_id"]].add(annotation["category_id"])
    return found


def _area(boxes_N4: Array) -> Array:
    return np.asarray(boxes_N4[:, 2] * boxes_N4[:, 3])


def _intersection(a_N4: Array, b_G4: Array) -> Array:
    """[N, G] areas common to xywh boxes."""
    low = np.maximum(a_N4[:, None, :2], b_G4[None, :, :2])
    high = np.minimum((a_N4[:, :2] + a_N4[:, 2:])[:, None], (b_G4[:, :2] + b_G4[:, 2:])[None])
    return np.asarray(np.clip(high - low, 0, None).prod(axis=2))
