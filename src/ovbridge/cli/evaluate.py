"""`ovbridge evaluate`: a checkpoint or a results file under a named protocol."""

from __future__ import annotations

import json as json_format
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ovbridge.cli.arguments import DetectionPrecisionName, call
from ovbridge.errors import ConfigError

EXAMPLES = """\
ovbridge evaluate --checkpoint runs/demo --images data/world/val2017 --annotations data/world/annotations/instances_val2017.json --protocol ov-coco --out results.json
ovbridge evaluate --predictions detections.json --annotations lvis_v1_val.json --protocol ov-lvis fixed-AP --json
ovbridge evaluate --checkpoint lvis.safetensors --images o365/val --annotations zhiyuan_objv2_val_names_fixed.json --protocol objects365
ovbridge evaluate --checkpoint runs/demo --images data/world/val2017 --annotations data/world/annotations/instances_val2017.json --fuse objectness_novel=0.3"""  # noqa: E501 - commands to copy


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(evaluate, argv, verb="evaluate", examples=EXAMPLES)


def evaluate(
    *,
    annotations: Path,
    protocol: tuple[
        Literal["ov-coco", "coco", "ov-lvis", "lvis", "fixed-AP", "openimages", "objects365", "strict"], ...
    ] = ("ov-coco",),
    predictions: Path | None = None,
    checkpoint: str | None = None,
    images: Path | None = None,
    out: Path | None = None,
    iou_type: Literal["bbox", "segm"] | None = None,
    strict: bool = False,
    batch: int = 1,
    save_predictions: Path | None = None,
    fuse: Annotated[tuple[str, ...], tyro.conf.arg(metavar="A=B ...")] = (),
    audit: bool = True,
    device: str | None = None,
    precision: DetectionPrecisionName = "fp32",
    json: bool = False,
) -> None:
    """Score a checkpoint, or detections that are already there. AP in percent.

    Args:
        annotations: COCO or LVIS annotation file to score against.
        protocol: One or several. ov-coco and ov-lvis report base and novel (rare) classes apart; coco, openimages and
            objects365 are for detectors trained elsewhere; strict refuses a checkpoint that knew the novel names.
        predictions: COCO results file to score, or a .npy of [N, 7] numbers.
        checkpoint: Detector to run instead: a file, the folder of a run, or hf://owner/name.
        images: With --checkpoint: folder of the images.
        out: File for the numbers (results.json).
        iou_type: Compare boxes or masks; by default masks for LVIS where the detections have them.
        strict: No mean over classes of which one has no ground truth, as the official evaluator has it.
        batch: With --checkpoint: images detected in one pass.
        save_predictions: With --checkpoint: file for the detections (COCO results), which must not be there yet.
        fuse: With --checkpoint: what else goes into the scores, such as distilled_head=0.5 objectness_novel=0.3
            clip_novel=0.35 templates="a photo of a {},a drawing of a {}".
        audit: With --checkpoint: look for novel names in what it was trained on; the verdict goes into the results.
        device: With --checkpoint: cpu or cuda; by default the GPU if there is one.
        precision: fp32; bf16, about half the time where the hardware has it; mixed, the best
            detections of fp32 in little more; auto, bf16 where the hardware has it.
        json: Print the numbers as JSON.
    """
    from ovbridge.evaluation import protocols
    from ovbridge.evaluation.results_file import require_free, write_results

    if (predictions is None) == (checkpoint is None):
        raise ConfigError("give either --predictions FILE or --checkpoint FILE with --images DIR")
    if fuse and checkpoint is None:
        raise ConfigError("--fuse changes how a detector scores: it goes with --checkpoint")
    about: dict[str, Any] = {"checkpoint": checkpoint, "stage": None, "seed": None}
    if predictions is not None:
        about |= {"predictions": str(predictions)} | _unaudited(protocol)
    if out is not None:
        require_free(out, {"protocol": protocol[0], "dataset": annotations.stem, **about})
    if save_predictions is not None:
        _require_new(save_predictions, checkpoint, out)
    started = time.monotonic()
    results: Any = predictions
    limits: dict[str, Any] = {}
    if checkpoint is not None:
        if images is None:
            raise ConfigError("--checkpoint needs --images DIR, the folder of the images")
        leaks = _audited(checkpoint, annotations, protocol) if audit or "strict" in protocol else {}
        results, about, limits = _detect(checkpoint, images, annotations, protocol, batch, device, precision, fuse)
        about |= leaks
        if save_predictions is not None:
            write_results(save_predictions, results)
    records = []
    for name in protocol:
        counted = limits[name].trim(results) if name in limits else results
        record = protocols.evaluate(annotations, counted, name, iou_type=iou_type, strict=strict)
        records.append(record | about | {"seconds": round(time.monotonic() - started, 2)})
    # Several protocols: the first is the file's own, each number stands under the name of its protocol.
    record = records[0] if len(records) == 1 else {**records[0], "protocols": {r["protocol"]: r for r in records}}
    if out is not None:
        write_results(out, record)
    if json:
        print(json_format.dumps(record))
    else:
        for one in records:
            _print_table(one, out if one is records[-1] else None)
    _print_notes(records, annotations)


def _require_new(save_predictions: Path, checkpoint: str | None, out: Path | None) -> None:
    """Raise ConfigError where detections could not be kept, before any is made."""
    if checkpoint is None:
        raise ConfigError("--save-predictions keeps what a detector finds: it goes with --checkpoint")
    if save_predictions.exists():
        raise ConfigError(f"{save_predictions} exists: choose another --save-predictions or remove it")
    if out is not None and save_predictions.resolve() == out.resolve():
        raise ConfigError(f"--save-predictions and --out are both {out}: give two files")


def _unaudited(protocol: Sequence[str]) -> dict[str, Any]:
    """What the strict protocol has to say of detections whose training nobody can look into."""
    why = "detections do not tell what their detector was trained on: give its --checkpoint, or see 'doctor leaks'"
    return {"leaks": {"verdict": "not audited", "why": why}} if "strict" in protocol else {}


def _audited(checkpoint: str, annotations: Path, protocol: Sequence[str]) -> dict[str, Any]:
    """The verdict of the leak audit; raises DataError where the strict protocol was asked for and does not hold."""
    from ovbridge.audit.run import summary_for
    from ovbridge.errors import DataError

    verdict = summary_for(checkpoint, annotations, strict="strict" in protocol)
    # Strict, every finding is a leak but what a backbone was pretrained to name, which is stated.
    if "strict" in protocol and verdict["verdict"] not in ("clean", "known vocabulary"):
        why = verdict["leaks"][0] if verdict.get("leaks") else verdict.get("why", verdict["verdict"])
        raise DataError(
            f"protocol strict: training of {checkpoint} is not known to be free of novel names ({why}): train on what "
            "'ovbridge prepare strict' writes, or report another protocol"
        )
    return {"leaks": verdict}


def _detect(
    checkpoint: str,
    images: Path,
    annotations: Path,
    protocol: Sequence[Any],
    batch: int,
    device: str | None,
    precision: DetectionPrecisionName,
    fuse: Sequence[str],
) -> tuple[list[dict[str, Any]], dict[str, Any], dict[str, Any]]:
    """Detections of every image over all names of the annotation file, what the checkpoint says of itself, and the
    limits of each protocol where the detections were made under the looser limits of several."""
    from ovbridge.config_tree import apply_overrides, to_json
    from ovbridge.data.annotation_check import federated_image, read_json
    from ovbridge.data.coco import CocoDataset
    from ovbridge.evaluation.protocols import expects_federated, limits_of, loosest
    from ovbridge.evaluation.run import predict
    from ovbridge.inference import Detector
    from ovbridge.rescoring.config import ScoreFusion

    if batch < 1:
        raise ConfigError(f"--batch is {batch}: give at least 1")
    wanted = {expects_federated(name) for name in protocol} - {None}
    if len(wanted) > 1:
        raise ConfigError(f"{' and '.join(protocol)} are for different files: one wants LVIS annotations, one does not")
    dataset = CocoDataset.load(annotations, federated=wanted.pop() if wanted else None)
    federated = federated_image(read_json(annotations)) is not None
    limits = {name: limits_of(name, federated=federated) for name in protocol}
    wide = loosest(list(limits.values()))
    detector = Detector.load(checkpoint, device, precision=precision)
    names = dataset.vocabulary.names
    fusion = apply_overrides(ScoreFusion(), fuse)
    about = {
        "checkpoint": checkpoint,
        "stage": detector.metadata.stage,
        "seed": detector.metadata.extra.get("seed"),
        "precision": precision,
        "limits": {name: to_json(x) for name, x in limits.items()},
    }
    if not fusion.changes_nothing:
        if precision != "fp32":
            raise ConfigError(f"--fuse computes in fp32: leave --precision {precision} out")
        from ovbridge.rescoring.load import fused_detector

        fused = fused_detector(detector, dataset.vocabulary, fusion)
        about["fusion"] = to_json(fusion)

        def detect(pixels: Any) -> Any:
            return fused.detect_batch(pixels, score_threshold=wide.score_threshold, max_detections=wide.max_detections)

    else:
        asked = detector.queries_for(names)

        def detect(pixels: Any) -> Any:
            return detector.detect_batch(
                pixels, asked, score_threshold=wide.score_threshold, max_detections=wide.max_detections
            )

    results = predict(detect, dataset, images, batch)
    return results, about, limits if len(limits) > 1 else {}


def _print_notes(records: Sequence[dict[str, Any]], annotations: Path) -> None:
    """What the numbers do not say by themselves."""
    from ovbridge.console import stderr

    for record in records:
        name, leaks = record["protocol"], record.get("leaks", {})
        if name == "strict" and leaks.get("verdict") == "not audited":
            stderr.print(f"note: protocol strict is not checked: {leaks['why']}", soft_wrap=True)
        if "novel" in record["ap50"] and not any(c["role"] == "novel" for c in record["per_class"].values()):
            stderr.print(
                f"note: {annotations}: no class is novel, so {name} has no novel mean: give every category a 'role', "
                "or take protocol coco",
                soft_wrap=True,
            )


def _print_table(record: dict[str, Any], out: Path | None) -> None:
    from rich.table import Table

    from ovbridge.console import stdout

    table = Table(title=f"{record['protocol']}, {record['images']} images, {record['iou_type']}")
    table.add_column("classes")
    for column in ("AP50", "AP"):
        table.add_column(column, justify="right")
    for group, ap50 in record["ap50"].items():
        values = (ap50, record["ap"].get(group))
        table.add_row(group, *("-" if v is None else f"{v:.1f}" for v in values))
    stdout.print(table)
    absent = record["classes_without_ground_truth"]
    if absent:
        shown = ", ".join(absent[:8]) + (", …" if len(absent) > 8 else "")
        stdout.print(f"{len(absent)} classes without ground truth are not in the means: {shown}", soft_wrap=True)
    if "leaks" in record:
        stdout.print(f"novel names in training: {record['leaks']['verdict']}", soft_wrap=True)
    if out is not None:
        stdout.print(f"written to {out}", soft_wrap=True)
