"""The named ways to turn detections into numbers.

ov-coco: generalised OV-COCO (arXiv 2207.03482): detections over all names, means of per-class AP over the base,
the novel, and the base + novel classes; unused classes do not count. coco: the mean over all classes.
ov-lvis and lvis: LVIS rules, 300 detections an image, means over rare (novel in ov-lvis), common and frequent classes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ovbridge.data.annotation_check import check_annotations, load_annotations
from ovbridge.data.splits import vocabulary_of
from ovbridge.errors import DataError
from ovbridge.evaluation.coco_ap import ClassPrecision, IouType, class_precision
from ovbridge.evaluation.result_check import check_results, load_results
from ovbridge.vocabulary import Vocabulary

Protocol = Literal["ov-coco", "coco", "ov-lvis", "lvis"]

COCO_DETECTIONS, LVIS_DETECTIONS = 100, 300
"""Detections counted: per image and class in COCO, per image in LVIS."""


def is_federated(protocol: Protocol) -> bool:
    """Whether a protocol follows LVIS rules."""
    return protocol in ("ov-lvis", "lvis")


def evaluate(
    ground_truth: dict[str, Any] | Path,
    results: Sequence[dict[str, Any]] | Path,
    protocol: Protocol,
    *,
    iou_type: IouType | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Score results; the record that `results.json` holds, AP in percent, None where a number is undefined.

    Classes without ground truth are left out of the means and listed under `classes_without_ground_truth`.

    Args:
        ground_truth: COCO-format annotations, or their file.
        results: COCO result records (`bbox` xywh in pixels, `score`), or their file.
        protocol: See the head of this module.
        iou_type: Boxes or masks; by default masks where the protocol is LVIS's and every result has one.
        strict: A mean is None as soon as one of its classes has no ground truth, as the official evaluator has it.

    Raises:
        DataError: With the offending id, before anything is scored.
    """
    payload, results, result_source = _checked_inputs(ground_truth, results, protocol)
    iou_type = iou_type or _default_iou_type(results, protocol)
    check_results(results, payload, result_source, iou_type=iou_type)
    if iou_type == "segm":
        _require_masks(payload)
    precision = _precision(payload, results, protocol, iou_type)
    vocabulary = vocabulary_of(payload["categories"], _name(ground_truth))
    frequency = {c["id"]: c.get("frequency") for c in payload["categories"]}
    groups = _groups(vocabulary, [frequency[c] for c in vocabulary.category_ids], protocol)
    return {
        "protocol": protocol,
        "dataset": Path(ground_truth).stem if isinstance(ground_truth, str | Path) else None,
        "iou_type": iou_type,
        "ap50": {name: mean(precision.ap_at(0.5)[columns], strict=strict) for name, columns in groups.items()},
        "ap": {name: mean(precision.ap()[columns], strict=strict) for name, columns in groups.items()},
        "per_class": per_class(precision, vocabulary),
        "images": len(payload["images"]),
        "detections": len(results),
        "classes_without_ground_truth": [vocabulary.names[k] for k in groups["all"] if not precision.instances[k]],
    }


def precision_recall_curves(
    ground_truth: dict[str, Any] | Path,
    results: Sequence[dict[str, Any]] | Path,
    protocol: Protocol,
    *,
    iou: float = 0.5,
) -> dict[str, np.ndarray]:
    """Class name → [101] precision in [0, 1] at recall 0, 0.01, …, 1, for classes with ground truth."""
    payload, results, source = _checked_inputs(ground_truth, results, protocol)
    check_results(results, payload, source, iou_type="bbox")
    precision = _precision(payload, results, protocol, "bbox")
    vocabulary = vocabulary_of(payload["categories"], _name(ground_truth))
    return {name: precision.curve(k, iou) for k, name in enumerate(vocabulary.names) if precision.instances[k]}


def mean(values: np.ndarray, *, strict: bool = False) -> float | None:
    """The mean of the defined values, or None; if `strict`, None as soon as one is NaN."""
    defined = values if strict else values[~np.isnan(values)]
    result = float(defined.mean()) if len(defined) else math.nan
    return None if math.isnan(result) else result


def per_class(precision: ClassPrecision, vocabulary: Vocabulary) -> dict[str, dict[str, Any]]:
    """Name → {"ap50", "ap" (None without ground truth), "role", "instances"}, in vocabulary order."""
    ap, ap50 = precision.ap(), precision.ap_at(0.5)
    return {
        name: {
            "ap50": None if math.isnan(ap50[k]) else float(ap50[k]),
            "ap": None if math.isnan(ap[k]) else float(ap[k]),
            "role": vocabulary.roles[k],
            "instances": precision.instances[k],
        }
        for k, name in enumerate(vocabulary.names)
    }


def _precision(
    payload: dict[str, Any], results: Sequence[dict[str, Any]], protocol: Protocol, iou_type: IouType
) -> ClassPrecision:
    federated = is_federated(protocol)
    limit = LVIS_DETECTIONS if federated else COCO_DETECTIONS
    return class_precision(payload, results, iou_type=iou_type, federated=federated, max_detections=limit)


def _checked_inputs(
    ground_truth: dict[str, Any] | Path, results: Sequence[dict[str, Any]] | Path, protocol: Protocol
) -> tuple[dict[str, Any], Sequence[dict[str, Any]], str]:
    federated = is_federated(protocol)
    if isinstance(ground_truth, str | Path):
        payload = load_annotations(Path(ground_truth), federated=federated)
    else:
        payload = ground_truth
        check_annotations(payload, _name(ground_truth), federated=federated)
    if isinstance(results, str | Path):
        return payload, load_results(Path(results)), str(results)
    return payload, results, "results"


def _name(ground_truth: dict[str, Any] | Path) -> str:
    return str(ground_truth) if isinstance(ground_truth, str | Path) else "ground truth"


def _default_iou_type(results: Sequence[dict[str, Any]], protocol: Protocol) -> IouType:
    has_masks = bool(results) and all(isinstance(r, dict) and "segmentation" in r for r in results)
    return "segm" if is_federated(protocol) and has_masks else "bbox"


def _require_masks(payload: dict[str, Any]) -> None:
    for annotation in payload["annotations"]:
        if not annotation.get("segmentation"):
            raise DataError(
                f"annotation {annotation['id']} has no segmentation: masks cannot be scored, use iou type bbox"
            )


def _groups(vocabulary: Vocabulary, frequencies: Sequence[Any], protocol: Protocol) -> dict[str, list[int]]:
    """Name of a mean → columns it is taken over."""
    everything = list(range(len(vocabulary)))
    if is_federated(protocol):
        for k, frequency in enumerate(frequencies):
            if frequency not in ("r", "c", "f"):
                raise DataError(
                    f"category {vocabulary.category_ids[k]} ({vocabulary.names[k]}) has frequency {frequency!r}: "
                    f"{protocol} needs r, c or f"
                )
        by_frequency = {f: [k for k in everything if frequencies[k] == f] for f in ("r", "c", "f")}
        return {"all": everything, **by_frequency}
    if protocol == "coco":
        return {"all": everything}
    base, novel = list(vocabulary.columns("base")), list(vocabulary.columns("novel"))
    return {"base": base, "novel": novel, "all": sorted(base + novel)}
