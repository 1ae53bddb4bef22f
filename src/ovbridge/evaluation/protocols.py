"""The named ways to turn detections into numbers.

ov-coco: generalised OV-COCO (arXiv 2207.03482): detections over all names, means of per-class AP over the base,
the novel, and the base + novel classes; unused classes do not count. coco and objects365: the mean over all classes.
ov-lvis and lvis: LVIS rules, 300 detections an image, means over rare (novel in ov-lvis), common and frequent classes.
fixed-AP: the best 10,000 detections of each class over the whole data set and no limit an image (arXiv 2102.01066),
otherwise as ov-coco or ov-lvis, whichever the file is for. openimages: AP50 of the challenge, see `openimages_ap`.
strict: as ov-coco or ov-lvis, for detectors whose training did not know the target names; the audit says which did.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ovbridge.data.annotation_check import check_annotations, federated_image, load_annotations
from ovbridge.data.masks import segmentation_fault
from ovbridge.data.splits import vocabulary_of
from ovbridge.errors import DataError
from ovbridge.evaluation.coco_ap import (
    ClassPrecision,
    IouType,
    Results,
    above,
    best_per_class,
    best_per_image,
    class_precision,
)
from ovbridge.evaluation.openimages_ap import class_ap50
from ovbridge.evaluation.result_check import check_results, load_results
from ovbridge.vocabulary import Vocabulary

Protocol = Literal["ov-coco", "coco", "ov-lvis", "lvis", "fixed-AP", "openimages", "objects365", "strict"]

COCO_DETECTIONS, LVIS_DETECTIONS = 100, 300
"""Detections counted: per image and class in COCO, per image in LVIS."""
FIXED_AP_DETECTIONS = 10_000
"""Detections of a class counted by fixed-AP over the whole data set."""
FIXED_AP_AN_IMAGE = 1_000
"""What a detector gives of each image for fixed-AP, which itself has no such limit."""


@dataclass(frozen=True, kw_only=True)
class DetectionLimits:
    """What a detector is asked for under a protocol."""

    score_threshold: float
    """Only scores above it."""
    max_detections: int
    """The best so many of an image."""

    def trim(self, results: Results) -> Results:
        """What is left of results that were made under looser limits."""
        return best_per_image(above(results, self.score_threshold), self.max_detections)


def limits_of(protocol: Protocol, *, federated: bool) -> DetectionLimits:
    """The official thresholds: COCO's where the file is COCO's, else those of LVIS and of cross-dataset transfer."""
    if protocol == "fixed-AP":
        return DetectionLimits(score_threshold=0.0, max_detections=FIXED_AP_AN_IMAGE)
    if federated or protocol in ("openimages", "objects365"):
        return DetectionLimits(score_threshold=1e-4, max_detections=LVIS_DETECTIONS)
    return DetectionLimits(score_threshold=0.05, max_detections=COCO_DETECTIONS)


def loosest(limits: Sequence[DetectionLimits]) -> DetectionLimits:
    """Limits under which nothing is lost that one of several protocols counts."""
    return DetectionLimits(
        score_threshold=min(x.score_threshold for x in limits), max_detections=max(x.max_detections for x in limits)
    )


def expects_federated(protocol: Protocol) -> bool | None:
    """Whether a protocol wants an LVIS file; None where either will do."""
    if protocol in ("fixed-AP", "strict", "openimages"):
        return None
    return is_federated(protocol)


def is_federated(protocol: Protocol) -> bool:
    """Whether a protocol follows LVIS rules whatever the file."""
    return protocol in ("ov-lvis", "lvis")


def lvis_rules(protocol: Protocol, payload: dict[str, Any]) -> bool:
    """Whether LVIS rules apply to a file under a protocol."""
    expected = expects_federated(protocol)
    return federated_image(payload) is not None and protocol != "openimages" if expected is None else expected


def evaluate(
    ground_truth: dict[str, Any] | Path,
    results: Results | Path,
    protocol: Protocol,
    *,
    iou_type: IouType | None = None,
    strict: bool = False,
) -> dict[str, Any]:
    """Score results; the record that `results.json` holds, AP in percent, None where a number is undefined.

    Classes without ground truth are left out of the means and listed under `classes_without_ground_truth`.

    Args:
        ground_truth: COCO-format annotations, or their file.
        results: COCO result records (`bbox` xywh in pixels, `score`), [N, 7] numbers, or their file.
        protocol: See the head of this module.
        iou_type: Boxes or masks; by default masks where the protocol is LVIS's and every result has one.
        strict: A mean is None as soon as one of its classes has no ground truth, as the official evaluator has it.

    Raises:
        DataError: With the offending id, before anything is scored.
    """
    payload, results, result_source = _checked_inputs(ground_truth, results, protocol)
    if protocol == "openimages" and iou_type == "segm":
        raise DataError("protocol openimages compares boxes alone: leave iou type segm out")
    iou_type = iou_type or _default_iou_type(results, federated=lvis_rules(protocol, payload))
    check_results(results, payload, result_source, iou_type=iou_type)
    if iou_type == "segm":
        _require_masks(payload, _name(ground_truth))
    vocabulary = vocabulary_of(payload["categories"], _name(ground_truth))
    federated = lvis_rules(protocol, payload)
    frequency = {c["id"]: c.get("frequency") for c in payload["categories"]}
    groups = _groups(vocabulary, [frequency[c] for c in vocabulary.category_ids], protocol, federated=federated)
    head = {
        "protocol": protocol,
        "dataset": Path(ground_truth).stem if isinstance(ground_truth, str | Path) else None,
        "iou_type": iou_type,
    }
    counts = {"images": len(payload["images"]), "detections": len(results)}
    if protocol == "openimages":
        return {**head, **_openimages(payload, results, vocabulary, groups, strict=strict), **counts}
    precision = _precision(payload, results, protocol, iou_type, federated=federated)
    ap_K, ap50_K = precision.ap(), precision.ap_at(0.5)
    return {
        **head,
        "ap50": {name: mean(ap50_K[columns], strict=strict) for name, columns in groups.items()},
        "ap": {name: mean(ap_K[columns], strict=strict) for name, columns in groups.items()},
        "per_class": per_class(precision, vocabulary),
        **counts,
        "classes_without_ground_truth": [vocabulary.names[k] for k in groups["all"] if not precision.instances[k]],
    }


def _openimages(
    payload: dict[str, Any], results: Results, vocabulary: Vocabulary, groups: dict[str, list[int]], *, strict: bool
) -> dict[str, Any]:
    """AP50 alone: the challenge has no other."""
    records = _records(results) if isinstance(results, np.ndarray) else results
    by_id = class_ap50(payload, records)
    values = np.array([by_id[c] for c in vocabulary.category_ids])
    return {
        "ap50": {name: mean(values[columns], strict=strict) for name, columns in groups.items()},
        "ap": {},
        "per_class": {
            name: {"ap50": None if math.isnan(values[k]) else float(values[k]), "role": vocabulary.roles[k]}
            for k, name in enumerate(vocabulary.names)
        },
        "classes_without_ground_truth": [n for n, v in zip(vocabulary.names, values, strict=True) if math.isnan(v)],
    }


def _records(rows_N7: np.ndarray) -> list[dict[str, Any]]:
    return [
        {"image_id": int(row[0]), "bbox": row[1:5], "score": row[5], "category_id": int(row[6])}
        for row in rows_N7.tolist()
    ]


def precision_recall_curves(
    ground_truth: dict[str, Any] | Path,
    results: Results | Path,
    protocol: Protocol,
    *,
    iou: float = 0.5,
) -> dict[str, np.ndarray]:
    """Class name → [101] precision in [0, 1] at recall 0, 0.01, …, 1, for classes with ground truth."""
    payload, results, source = _checked_inputs(ground_truth, results, protocol)
    check_results(results, payload, source, iou_type="bbox")
    precision = _precision(payload, results, protocol, "bbox", federated=lvis_rules(protocol, payload))
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
    payload: dict[str, Any], results: Results, protocol: Protocol, iou_type: IouType, *, federated: bool
) -> ClassPrecision:
    if protocol == "fixed-AP":
        kept = best_per_class(results, FIXED_AP_DETECTIONS)
        return class_precision(payload, kept, iou_type=iou_type, federated=federated, max_detections=None)
    limit = LVIS_DETECTIONS if federated else COCO_DETECTIONS
    return class_precision(payload, results, iou_type=iou_type, federated=federated, max_detections=limit)


def _checked_inputs(
    ground_truth: dict[str, Any] | Path, results: Results | Path, protocol: Protocol
) -> tuple[dict[str, Any], Results, str]:
    federated = expects_federated(protocol)
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


def _default_iou_type(results: Results, *, federated: bool) -> IouType:
    if isinstance(results, np.ndarray) or not federated:
        return "bbox"
    has_masks = bool(results) and all(isinstance(r, dict) and "segmentation" in r for r in results)
    return "segm" if has_masks else "bbox"


def _require_masks(payload: dict[str, Any], source: str) -> None:
    sizes = {i["id"]: (i["height"], i["width"]) for i in payload["images"]}
    for annotation in payload["annotations"]:
        segmentation = annotation.get("segmentation")
        fault = segmentation_fault(segmentation, *sizes[annotation["image_id"]])
        if fault:
            has = f"has no usable segmentation ({fault})" if segmentation else "has no segmentation"
            raise DataError(f"{source}: annotation {annotation['id']} {has}: masks cannot be scored, use iou type bbox")


def _groups(
    vocabulary: Vocabulary, frequencies: Sequence[Any], protocol: Protocol, *, federated: bool
) -> dict[str, list[int]]:
    """Name of a mean → columns it is taken over."""
    everything = list(range(len(vocabulary)))
    if federated:
        for k, frequency in enumerate(frequencies):
            if frequency not in ("r", "c", "f"):
                raise DataError(
                    f"category {vocabulary.category_ids[k]} ({vocabulary.names[k]}) has frequency {frequency!r}: "
                    f"{protocol} needs r, c or f"
                )
        by_frequency = {f: [k for k in everything if frequencies[k] == f] for f in ("r", "c", "f")}
        return {"all": everything, **by_frequency}
    if protocol in ("coco", "objects365", "openimages"):
        return {"all": everything}
    base, novel = list(vocabulary.columns("base")), list(vocabulary.columns("novel"))
    return {"base": base, "novel": novel, "all": sorted(base + novel)}
