"""Average precision per class; the only place that knows hotcoco.

Legend: T IoU thresholds (0.50, 0.55, …, 0.95), R = 101 recall points, K classes. The tests hold hotcoco to
pycocotools and lvis-api within 1e-12.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np

from ovbridge.data.annotation_check import FEDERATED_KEYS

IouType = Literal["bbox", "segm"]

Results = Sequence[dict[str, Any]] | np.ndarray
"""COCO result records, or the same as [N, 7] numbers: image id, x, y, width, height, score, category id."""
_R = TypeVar("_R", bound=Results)
IMAGE, SCORE, CATEGORY = 0, 5, 6
"""Columns of results as numbers."""

IOU_THRESHOLDS_T = np.linspace(0.5, 0.95, 10)


@dataclass(frozen=True, kw_only=True)
class ClassPrecision:
    """Precision at every IoU threshold and recall point, for all sizes of object and the full number of detections."""

    category_ids: tuple[int, ...]
    """[K] ascending."""
    precision_TRK: np.ndarray  # noqa: N815 - dense-maths suffix
    """[T, 101, K] in [0, 1]; -1 for a class without ground truth (crowds count as none)."""
    recall_TK: np.ndarray  # noqa: N815 - dense-maths suffix
    """[T, K] highest recall reached; -1 for a class without ground truth."""
    instances: tuple[int, ...]
    """[K] ground-truth boxes, crowds left out."""

    def ap(self) -> np.ndarray:
        """[K] AP averaged over the IoU thresholds, in percent; NaN without ground truth."""
        return self._percent(self.precision_TRK)

    def ap_at(self, iou: float) -> np.ndarray:
        """[K] AP at one IoU threshold, in percent; NaN without ground truth."""
        return self._percent(self.precision_TRK[[self.threshold_index(iou)]])

    def curve(self, column: int, iou: float = 0.5) -> np.ndarray:
        """[101] interpolated precision in [0, 1] at recall 0, 0.01, …, 1; NaN without ground truth."""
        curve = self.precision_TRK[self.threshold_index(iou), :, column]
        return np.where(curve < 0, np.nan, curve)

    @staticmethod
    def threshold_index(iou: float) -> int:
        """Position of an IoU threshold; ValueError if it is not one of the ten."""
        nearest = int(np.abs(IOU_THRESHOLDS_T - iou).argmin())
        if abs(IOU_THRESHOLDS_T[nearest] - iou) > 1e-6:
            raise ValueError(f"IoU {iou} is not one of {IOU_THRESHOLDS_T.round(2).tolist()}")
        return nearest

    @staticmethod
    def _percent(precision_TRK: np.ndarray) -> np.ndarray:
        rows = np.moveaxis(precision_TRK, 2, 0).reshape(precision_TRK.shape[2], -1)
        defined = rows > -1
        kept = (row[there] for row, there in zip(rows, defined, strict=True))
        return np.array([row.mean() * 100 if len(row) else np.nan for row in kept], dtype=np.float64)


def class_precision(
    ground_truth: dict[str, Any],
    results: Results,
    *,
    iou_type: IouType = "bbox",
    federated: bool = False,
    max_detections: int | None = 100,
) -> ClassPrecision:
    """Match detections to ground truth as pycocotools does, or lvis-api if `federated`.

    Args:
        ground_truth: A COCO-format dict that passed `annotation_check`.
        results: COCO result records that passed `result_check`.
        iou_type: Compare boxes or masks.
        federated: LVIS rules: classes are judged only where an image was checked for them.
        max_detections: Best-scored detections kept: per image and class for COCO (as pycocotools),
            per image over all classes for LVIS (as lvis-api). None keeps all.
    """
    import hotcoco

    kept = best_per_image(results, max_detections) if federated and max_detections is not None else results
    truth = hotcoco.COCO(_ground_truth_read(ground_truth, iou_type))
    found = truth.load_res(_results_read(kept, iou_type))
    evaluator = hotcoco.COCOeval(truth, found, iou_type, lvis_style=federated)
    if max_detections is None:
        # No group of detections is longer than all of them together.
        evaluator.params.max_dets = [len(kept) + 1] if federated else [1, 10, len(kept) + 11]
    elif not federated:
        evaluator.params.max_dets = [1, 10, max_detections]
    evaluator.evaluate()
    evaluator.accumulate()
    assert evaluator.eval is not None
    # [T, R, K, A, M]: all areas come first, the full number of detections last.
    precision_TRK = np.asarray(evaluator.eval["precision"])[:, :, :, 0, -1]
    recall_TK = np.asarray(evaluator.eval["recall"])[:, :, 0, -1]
    category_ids = tuple(sorted(c["id"] for c in ground_truth["categories"]))
    count: defaultdict[int, int] = defaultdict(int)
    for annotation in ground_truth["annotations"]:
        count[annotation["category_id"]] += not annotation.get("iscrowd")
    return ClassPrecision(
        category_ids=category_ids,
        precision_TRK=precision_TRK,
        recall_TK=recall_TK,
        instances=tuple(count[c] for c in category_ids),
    )


def best_per_image(results: _R, limit: int) -> _R:
    """The `limit` best-scored records of each image; ties keep the order given, as in lvis-api."""
    return _best_of_each(results, "image_id", IMAGE, limit)


def best_per_class(results: _R, limit: int) -> _R:
    """The `limit` best-scored records of each class over the whole data set; ties keep the order given."""
    return _best_of_each(results, "category_id", CATEGORY, limit)


def above(results: _R, threshold: float) -> _R:
    """The records that score more than `threshold`."""
    if isinstance(results, np.ndarray):
        return results[results[:, SCORE] > threshold]  # type: ignore[return-value]
    return [r for r in results if r["score"] > threshold]  # type: ignore[return-value]


def _best_of_each(results: _R, key: str, column: int, limit: int) -> _R:
    if isinstance(results, np.ndarray):
        order = np.lexsort((-results[:, SCORE], results[:, column]))
        groups = results[order, column]
        starts = np.flatnonzero(np.r_[True, groups[1:] != groups[:-1]]) if len(order) else np.zeros(0, int)
        rank = np.arange(len(order)) - np.repeat(starts, np.diff(np.r_[starts, len(order)]))
        return results[order[rank < limit]]  # type: ignore[return-value]
    of_group: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in results:
        of_group[result[key]].append(result)
    return [  # type: ignore[return-value]
        result
        for group in of_group.values()
        for result in sorted(group, key=lambda r: r["score"], reverse=True)[:limit]
    ]


def _ground_truth_read(ground_truth: dict[str, Any], iou_type: IouType) -> dict[str, Any]:
    """Only what the evaluator reads, which refuses other keys of another type than COCO's own files have.

    `area` and `iscrowd` are filled in where a user's file lacks them.
    """
    annotations = [
        {
            **{key: a[key] for key in ("id", "image_id", "category_id", "bbox")},
            "area": float(a["area"] if "area" in a else a["bbox"][2] * a["bbox"][3]),
            "iscrowd": int(bool(a.get("iscrowd"))),
            **({"segmentation": a["segmentation"]} if iou_type == "segm" else {}),
        }
        for a in ground_truth["annotations"]
    ]
    images = [
        {
            "id": image["id"],
            "width": int(image["width"]),
            "height": int(image["height"]),
            **{key: image[key] for key in FEDERATED_KEYS if key in image},
        }
        for image in ground_truth["images"]
    ]
    categories = [{"id": c["id"], "name": c["name"]} for c in ground_truth["categories"]]
    return {"images": images, "categories": categories, "annotations": annotations}


def _results_read(results: Results, iou_type: IouType) -> np.ndarray | list[dict[str, Any]]:
    """Only the keys of records that the evaluator reads; a record without others is not copied."""
    if isinstance(results, np.ndarray):
        return results
    keys = {"image_id", "category_id", "bbox", "score"} | ({"segmentation"} if iou_type == "segm" else set())
    return [r if r.keys() <= keys else {key: r[key] for key in r.keys() & keys} for r in results]
