"""`ovbridge evaluate`: a checkpoint or a results file under a named protocol."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from ovbridge.cli.arguments import call
from ovbridge.errors import ConfigError

EXAMPLES = """\
ovbridge evaluate --checkpoint runs/demo --images data/world/val2017 --annotations data/world/annotations/instances_val2017.json --protocol ov-coco --out results.json
ovbridge evaluate --predictions detections.json --annotations lvis_v1_val.json --protocol ov-lvis --json"""  # noqa: E501 - commands to copy


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(evaluate, argv, verb="evaluate", examples=EXAMPLES)


def evaluate(
    *,
    annotations: Path,
    protocol: Literal["ov-coco", "coco", "ov-lvis", "lvis"] = "ov-coco",
    predictions: Path | None = None,
    checkpoint: str | None = None,
    images: Path | None = None,
    out: Path | None = None,
    iou_type: Literal["bbox", "segm"] | None = None,
    strict: bool = False,
    batch: int = 1,
    save_predictions: Path | None = None,
    device: str | None = None,
    json: bool = False,
) -> None:
    """Score a checkpoint, or detections that are already there. AP in percent.

    Args:
        annotations: COCO or LVIS annotation file to score against.
        protocol: ov-coco and ov-lvis report base and novel (rare) classes apart.
        predictions: COCO results file to score.
        checkpoint: Detector to run instead: a file, the folder of a run, or hf://owner/name.
        images: With --checkpoint: folder of the images.
        out: File for the numbers (results.json).
        iou_type: Compare boxes or masks; by default masks for LVIS where the detections have them.
        strict: No mean over classes of which one has no ground truth, as the official evaluator has it.
        batch: With --checkpoint: images detected in one pass.
        save_predictions: With --checkpoint: file for the detections (COCO results).
        device: With --checkpoint: cpu or cuda; by default the GPU if there is one.
        json: Print the numbers as JSON.
    """
    from ovbridge.evaluation import protocols
    from ovbridge.evaluation.results_file import require_free, write_results

    if (predictions is None) == (checkpoint is None):
        raise ConfigError("give either --predictions FILE or --checkpoint FILE with --images DIR")
    identity = {"protocol": protocol, "dataset": annotations.stem, "checkpoint": checkpoint}
    if out is not None:
        require_free(out, identity)
    started = time.monotonic()
    about: dict[str, Any] = {"checkpoint": checkpoint, "stage": None, "seed": None}
    if checkpoint is not None:
        if images is None:
            raise ConfigError("--checkpoint needs --images DIR, the folder of the images")
        results, about = _detect(checkpoint, images, annotations, protocol, batch, device)
        if save_predictions is not None:
            write_results(save_predictions, results)
    record = protocols.evaluate(
        annotations, results if predictions is None else predictions, protocol, iou_type=iou_type, strict=strict
    )
    record |= {**about, "seconds": round(time.monotonic() - started, 2)}
    if out is not None:
        write_results(out, record)
    if json:
        print(json_format.dumps(record))
    else:
        _print_table(record, out)


def _detect(
    checkpoint: str, images: Path, annotations: Path, protocol: str, batch: int, device: str | None
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Detections of every image over all names of the annotation file, and what the checkpoint says of itself."""
    from ovbridge.data.coco import CocoDataset
    from ovbridge.evaluation.protocols import COCO_DETECTIONS, LVIS_DETECTIONS
    from ovbridge.evaluation.run import predict
    from ovbridge.inference import Detector

    federated = protocol in ("ov-lvis", "lvis")
    dataset = CocoDataset.load(annotations, federated=federated)
    detector = Detector.load(checkpoint, device)
    # By name, so that another order of classes in the checkpoint cannot shift the columns.
    names = None if detector.names == dataset.vocabulary.names else dataset.vocabulary.names
    threshold, limit = (1e-4, LVIS_DETECTIONS) if federated else (0.05, COCO_DETECTIONS)
    results = predict(
        lambda pixels: detector.detect_batch(pixels, names, score_threshold=threshold, max_detections=limit),
        dataset,
        images,
        batch,
    )
    metadata = detector.metadata
    return results, {"checkpoint": checkpoint, "stage": metadata.stage, "seed": metadata.extra.get("seed")}


def _print_table(record: dict[str, Any], out: Path | None) -> None:
    from rich.table import Table

    from ovbridge.console import stdout

    table = Table(title=f"{record['protocol']}, {record['images']} images, {record['iou_type']}")
    table.add_column("classes")
    for column in ("AP50", "AP"):
        table.add_column(column, justify="right")
    for group, ap in record["ap"].items():
        table.add_row(group, *("-" if v is None else f"{v:.1f}" for v in (record["ap50"][group], ap)))
    stdout.print(table)
    absent = record["classes_without_ground_truth"]
    if absent:
        shown = ", ".join(absent[:8]) + (", …" if len(absent) > 8 else "")
        stdout.print(f"{len(absent)} classes without ground truth are not in the means: {shown}", soft_wrap=True)
    if out is not None:
        stdout.print(f"written to {out}", soft_wrap=True)
