"""Evaluation in the course of training, and the best detector so far beside the run's checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ovbridge.detector import DetectorMetadata, TwoStageDetector, save_detector
from ovbridge.errors import ConfigError
from ovbridge.ranges import COUNT, require_ranges
from ovbridge.training.inputs import fingerprint

BEST_FILE = "best.safetensors"
BEST_RECORD = "best.json"


@dataclass(frozen=True, kw_only=True)
class ValidationConfig:
    """What `loop.evaluate_every` evaluates on."""

    images: str = ""
    """Folder of the images, from `data.root`."""
    annotations: str = ""
    """COCO-format JSON with their boxes, from `data.root`; empty evaluates nothing."""
    protocol: Literal["ov-coco", "coco", "ov-lvis", "lvis"] = "ov-coco"
    """How detections become figures."""
    metric: str = "ap50.all"
    """The figure by which the best detector is chosen: "ap50" or "ap", a dot, and a mean of the protocol."""
    batch: int = 8
    """Images detected in one pass."""

    def __post_init__(self) -> None:
        require_ranges(self, "validation.", batch=COUNT)


def check_validation(config: ValidationConfig, root: Path) -> None:
    """Raise ConfigError for a path that does not exist or a metric that the annotations do not give, else DataError."""
    from ovbridge.evaluation.protocols import evaluate

    images, annotations = root / config.images, root / config.annotations
    for field, path in (("images", images), ("annotations", annotations)):
        if not path.exists():
            raise ConfigError(f"validation.{field} {path} does not exist: --set validation.{field}=...")
    # Which figures there are depends on the true boxes alone.
    known = _figures(evaluate(annotations, [], config.protocol, iou_type="bbox"))
    if config.metric not in known:
        raise ConfigError(f"validation.metric {config.metric!r} is none of {', '.join(known)}")


class Validation:
    """Evaluates a detector in training and keeps the best one as `best.safetensors`, with its figures in `best.json`.

    Resuming repeats no choice: the same weights have the same figure, and only a better one replaces the best. Another
    metric compares by that metric; with another protocol or other annotations the choice starts anew.
    """

    def __init__(
        self,
        config: ValidationConfig,
        root: Path,
        out: Path,
        model: TwoStageDetector,
        metadata: DetectorMetadata,
        *,
        back_to_training: Callable[[], None],
    ) -> None:
        """Raises as `check_validation` does."""
        check_validation(config, root)
        self._config, self._out, self._model, self._metadata = config, out, model, metadata
        self._images, self._annotations = root / config.images, root / config.annotations
        self._measured = {"protocol": config.protocol, "annotations": fingerprint(self._annotations)}
        self._back_to_training = back_to_training

    def __call__(self, step: int) -> dict[str, float]:
        """Figures of the model as it is, after `step` steps."""
        try:
            record = evaluate_model(
                self._model,
                self._metadata,
                images=self._images,
                annotations=self._annotations,
                protocol=self._config.protocol,
                batch=self._config.batch,
            )
        finally:
            self._back_to_training()
        figures = _figures(record)
        self._keep_if_best(step, figures)
        return figures

    def _keep_if_best(self, step: int, figures: dict[str, float]) -> None:
        value, record = figures[self._config.metric], self._out / BEST_RECORD
        if value <= self._best_so_far():
            return
        save_detector(self._out / BEST_FILE, self._model, self._metadata)
        aside = record.with_name(record.name + ".part")
        head = {"step": step, "metric": self._config.metric, "value": value}
        aside.write_text(json.dumps({**head, **self._measured, "figures": figures}, indent=2) + "\n", encoding="utf-8")
        aside.replace(record)

    def _best_so_far(self) -> float:
        """The metric of the detector that is kept, minus infinity where it was measured on something else or is gone.

        A record of an earlier version does not say what it was measured on and counts as the same.
        """
        try:
            best = json.loads((self._out / BEST_RECORD).read_text(encoding="utf-8"))
            same = all(best.get(key, value) == value for key, value in self._measured.items())
            if same and (self._out / BEST_FILE).exists():
                return float(best["figures"].get(self._config.metric, -math.inf))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            pass
        return -math.inf


def _figures(record: dict[str, Any]) -> dict[str, float]:
    """ "ap50.all" and so on → percent, for the means of a protocol's record that are defined."""
    return {f"{kind}.{name}": float(v) for kind in ("ap50", "ap") for name, v in record[kind].items() if v is not None}


def evaluate_model(
    model: TwoStageDetector,
    metadata: DetectorMetadata,
    *,
    images: Path,
    annotations: Path,
    protocol: Literal["ov-coco", "coco", "ov-lvis", "lvis"],
    batch: int,
) -> dict[str, Any]:
    """The record of `evaluation.protocols.evaluate` for the detections of a model over all names of `annotations`.

    The model is left in evaluation mode. Raises the OVBridgeErrors of `evaluation.run.predict`.
    """
    from ovbridge.data.coco import CocoDataset
    from ovbridge.evaluation.protocols import COCO_DETECTIONS, LVIS_DETECTIONS, evaluate, is_federated
    from ovbridge.evaluation.run import predict
    from ovbridge.inference import Detector

    federated = is_federated(protocol)
    dataset = CocoDataset.load(annotations, federated=federated)
    detector = Detector(model, metadata, device=model.device)
    asked = detector.queries_for(dataset.vocabulary.names)
    threshold, limit = (1e-4, LVIS_DETECTIONS) if federated else (0.05, COCO_DETECTIONS)
    results = predict(
        lambda pixels: detector.detect_batch(pixels, asked, score_threshold=threshold, max_detections=limit),
        dataset,
        images,
        batch,
    )
    return evaluate(annotations, results, protocol)
