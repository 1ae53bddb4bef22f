"""Evaluation in the course of training, and the best detector so far beside the run's checkpoints."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ovbridge.detector import DetectorMetadata, TwoStageDetector, save_detector
from ovbridge.errors import ConfigError

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


class Validation:
    """Evaluates a detector in training and keeps the best one as `best.safetensors`, with its figures in `best.json`.

    Resuming repeats no choice: the same weights have the same figure, and only a better one replaces the best.
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
        """Raises ConfigError where a path does not exist."""
        self._config, self._out, self._model, self._metadata = config, out, model, metadata
        self._images, self._annotations = root / config.images, root / config.annotations
        self._back_to_training = back_to_training
        for field, path in (("images", self._images), ("annotations", self._annotations)):
            if not path.exists():
                raise ConfigError(f"validation.{field} {path} does not exist: --set validation.{field}=...")

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
        figures = {
            f"{kind}.{name}": float(v) for kind in ("ap50", "ap") for name, v in record[kind].items() if v is not None
        }
        if self._config.metric not in figures:
            raise ConfigError(f"validation.metric {self._config.metric!r} is none of {', '.join(figures)}")
        self._keep_if_best(step, figures)
        return figures

    def _keep_if_best(self, step: int, figures: dict[str, float]) -> None:
        value, record = figures[self._config.metric], self._out / BEST_RECORD
        try:
            best = json.loads(record.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            best = {"value": float("-inf")}
        if value <= best["value"]:
            return
        save_detector(self._out / BEST_FILE, self._model, self._metadata)
        aside = record.with_name(record.name + ".part")
        text = json.dumps({"step": step, "metric": self._config.metric, "value": value, "figures": figures}, indent=2)
        aside.write_text(text + "\n", encoding="utf-8")
        aside.replace(record)


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
