"""What the report shows beyond the numbers: gathered from the files of a finished demo run.

Legend: N boxes, D embedding width.
"""

from __future__ import annotations

import json
import platform
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torchvision.ops import box_iou

from ovbridge import __version__
from ovbridge.data.coco import CocoDataset, CocoImage
from ovbridge.demo import wording
from ovbridge.evaluation.proposal_recall import recall_at
from ovbridge.evaluation.protocols import precision_recall_curves
from ovbridge.images import read_image
from ovbridge.inference import Detector
from ovbridge.labeling.pseudo_boxes import SelectionConfig, class_agnostic
from ovbridge.labeling.region_embeddings import embed_boxes
from ovbridge.report.content import (
    EmbeddingPanel,
    ExamplePicture,
    LossCurve,
    ProposalPicture,
    ReportData,
    StageReport,
)
from ovbridge.report.paper import stage_title
from ovbridge.structures import Detections
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES
from ovbridge.training.logging import read_log

if TYPE_CHECKING:
    from ovbridge.demo.run import DemoFolder, Teachers
    from ovbridge.demo.settings import DemoSettings

EXAMPLES, PROPOSAL_PICTURES = 5, 3
SHOWN_SCORE = 0.4
"""Detections below it are not drawn."""
RECALL_IMAGES = 100
REGIONS_PER_CLASS = 100
"""At most so many regions of each novel class, as in the paper, in the similarity matrices and maps."""
PROPOSER_TITLE = "MAVL, “all objects”"


def collect_findings(
    folder: DemoFolder,
    settings: DemoSettings,
    teachers: Teachers,
    records: Mapping[str, dict[str, Any]],
    seconds: Mapping[str, float],
) -> ReportData:
    """Everything that the report of this run shows."""
    dataset = CocoDataset.load(folder.val_annotations)
    roles = dict(zip(dataset.vocabulary.names, dataset.vocabulary.roles, strict=True))
    detections = {stage: _detections(folder, stage, dataset) for stage in records}
    first, last = next(iter(records)), list(records)[-1]
    showpieces = _showpieces(dataset, detections[last], roles)
    detectors = {stage: Detector.load(folder.checkpoint(stage)) for stage in records}
    proposals, recall = _proposals(folder, teachers, detectors[first], dataset, roles, showpieces)
    panels, labels = _panels(folder, teachers, detectors, dataset, roles)
    return ReportData(
        title="Detection by name in the built-in world",
        lead=wording.lead(settings, len(dataset)),
        stages=[
            _stage_report(folder, stage, record, dataset, detections[stage], roles) for stage, record in records.items()
        ],
        roles=roles,
        examples=[
            ExamplePicture(
                pixels=read_image(folder.val_images / image.file_name),
                found={stage: _confident(found[image.image_id]) for stage, found in detections.items()},
            )
            for image in showpieces[:EXAMPLES]
        ],
        proposals=proposals,
        proposal_recall=recall,
        panels=panels,
        panel_labels=labels,
        seconds=seconds,
        differs=wording.differs(settings, teachers.proposer.trained_on),
        methods=wording.methods(
            recall_images=min(RECALL_IMAGES, len(dataset)), regions=len(labels), shown_score=SHOWN_SCORE
        ),
        facts={
            "Command": wording.command(settings),
            "Proposer": f"{teachers.proposer.name}, trained on {teachers.proposer.trained_on}",
            "CLIP": teachers.clip.name,
            "Versions": f"OVBridge {__version__}, Python {platform.python_version()}, PyTorch {torch.__version__}",
            "Machine": f"{platform.machine()}, {torch.get_num_threads()} threads"
            + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""),
        },
    )


def _stage_report(
    folder: DemoFolder,
    stage: str,
    record: Mapping[str, Any],
    dataset: CocoDataset,
    detections: Mapping[int, Detections],
    roles: Mapping[str, str],
) -> StageReport:
    curves = precision_recall_curves(folder.val_annotations, folder.predictions(stage), "ov-coco")
    by_role = {
        role: np.array([curve for name, curve in curves.items() if roles[name] == role]) for role in ("base", "novel")
    }
    return StageReport(
        name=stage,
        ap50=_defined(record["ap50"]),
        ap=_defined(record["ap"]),
        class_ap50={name: c["ap50"] for name, c in record["per_class"].items() if c["ap50"] is not None},
        losses=_loss_curves(folder, stage),
        precision={role: rows.mean(axis=0) for role, rows in by_role.items() if len(rows)},
        hit_scores=hit_scores(dataset.images, detections, roles),
    )


def _loss_curves(folder: DemoFolder, stage: str) -> dict[str, LossCurve]:
    points: defaultdict[str, list[tuple[int, float]]] = defaultdict(list)
    for line in read_log(folder.stage(stage) / "log.jsonl"):
        for name, value in line["losses"].items():
            points[name].append((line["step"], value))
    return {
        name: LossCurve(steps=[step for step, _ in curve], values=[value for _, value in curve])
        for name, curve in points.items()
    }


def hit_scores(
    images: Sequence[CocoImage], detections: Mapping[int, Detections], roles: Mapping[str, str]
) -> dict[str, np.ndarray[Any, Any]]:
    """ "base" and "novel" → scores of the detections that are right.

    As in COCO's matching at IoU 0.5: best detection first, each takes the free box of its class that it overlaps most.
    """
    scores: dict[str, list[float]] = {"base": [], "novel": []}
    for image in images:
        found = detections[image.image_id]
        if not len(found) or not len(image.boxes_xyxy):
            continue
        overlap = box_iou(found.boxes_xyxy, torch.from_numpy(image.boxes_xyxy))
        free = torch.ones(len(image.boxes_xyxy), dtype=torch.bool)
        classes = torch.from_numpy(image.class_ids)
        for row, class_id, score in zip(overlap, found.class_ids, found.scores.tolist(), strict=True):
            usable = torch.where(free & (classes == class_id), row, -1.0)
            best = int(usable.argmax())
            role = roles[found.names[int(class_id)]]
            if usable[best] >= 0.5 and role in scores:
                free[best] = False
                scores[role].append(score)
    return {role: np.array(values) for role, values in scores.items()}


def _detections(folder: DemoFolder, stage: str, dataset: CocoDataset) -> dict[int, Detections]:
    """Image id → what the stage found there, best first."""
    column = dataset.vocabulary.column_of_category()
    grouped: defaultdict[int, list[dict[str, Any]]] = defaultdict(list)
    for result in json.loads(folder.predictions(stage).read_text()):
        grouped[result["image_id"]].append(result)
    found = {}
    for image in dataset.images:
        rows = sorted(grouped[image.image_id], key=lambda r: -r["score"])
        boxes = torch.tensor([r["bbox"] for r in rows], dtype=torch.float32).reshape(-1, 4)
        found[image.image_id] = Detections(
            boxes_xyxy=torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], dim=1),
            scores=torch.tensor([r["score"] for r in rows], dtype=torch.float32),
            class_ids=torch.tensor([column[r["category_id"]] for r in rows], dtype=torch.int64),
            names=dataset.vocabulary.names,
        )
    return found


def _confident(found: Detections) -> Detections:
    return found.select(found.scores >= SHOWN_SCORE)


def _showpieces(dataset: CocoDataset, found: Mapping[int, Detections], roles: Mapping[str, str]) -> list[CocoImage]:
    """Pictures with both kinds of object, most different classes first: chosen by truth, not success."""
    names = dataset.vocabulary.names

    def interest(image: CocoImage) -> tuple[int, int]:
        kinds = {int(c) for c in image.class_ids}
        novel = sum(roles[names[c]] == "novel" for c in kinds)
        return min(novel, len(kinds) - novel), len(kinds)

    return sorted((image for image in dataset.images if image.image_id in found), key=interest, reverse=True)


def _proposals(
    folder: DemoFolder,
    teachers: Teachers,
    base: Detector,
    dataset: CocoDataset,
    roles: Mapping[str, str],
    showpieces: Sequence[CocoImage],
) -> tuple[list[ProposalPicture], dict[str, dict[str, float]]]:
    """Pictures with the five best boxes of either proposer, and recall of objects of either role at 5 and 50."""
    kept = SelectionConfig(top_k=50)
    shown = list(showpieces[:PROPOSAL_PICTURES])
    images = shown + [image for image in dataset.images if image not in shown][: max(RECALL_IMAGES - len(shown), 0)]
    found: dict[str, list[torch.Tensor]] = {"RPN of the base stage": [], PROPOSER_TITLE: []}
    for image in images:
        pixels = read_image(folder.val_images / image.file_name)
        found["RPN of the base stage"].append(base.propose(pixels, kept.top_k).boxes_xyxy)
        answers = teachers.proposer.propose([pixels], [CLASS_AGNOSTIC_QUERIES])[0]
        found[PROPOSER_TITLE].append(class_agnostic(answers, image.height, image.width, kept).boxes_xyxy)
    truth_roles = [[roles[dataset.vocabulary.names[c]] for c in image.class_ids.tolist()] for image in images]
    truth = {
        role: [
            torch.from_numpy(image.boxes_xyxy[[r == role for r in of_image]])
            for image, of_image in zip(images, truth_roles, strict=True)
        ]
        for role in ("base", "novel")
    }
    recall = {
        name: {f"{role}, recall@{k}": 100 * recall_at(boxes, truth[role], k) for role in truth for k in (5, 50)}
        for name, boxes in found.items()
    }
    pictures = [
        ProposalPicture(
            pixels=read_image(folder.val_images / image.file_name),
            boxes_xyxy={name: boxes[i][:5].numpy() for name, boxes in found.items()},
            truth_xyxy=image.boxes_xyxy,
            truth_roles=truth_roles[i],
        )
        for i, image in enumerate(shown)
    ]
    return pictures, recall


def _panels(
    folder: DemoFolder,
    teachers: Teachers,
    detectors: Mapping[str, Detector],
    dataset: CocoDataset,
    roles: Mapping[str, str],
) -> tuple[list[EmbeddingPanel], list[str]]:
    """Embeddings of the same novel objects by CLIP and by each stage; the class names row by row."""
    taken: defaultdict[str, int] = defaultdict(int)
    labels: list[str] = []
    rows: dict[str, list[torch.Tensor]] = defaultdict(list)
    for image in dataset.images:
        names = [dataset.vocabulary.names[c] for c in image.class_ids.tolist()]
        chosen = []
        for i, name in enumerate(names):
            if roles[name] == "novel" and taken[name] < REGIONS_PER_CLASS:
                taken[name] += 1
                chosen.append(i)
        if not chosen:
            continue
        labels += [names[i] for i in chosen]
        boxes = torch.from_numpy(image.boxes_xyxy[chosen])
        pixels = read_image(folder.val_images / image.file_name)
        rows["CLIP"] += embed_boxes([pixels], [boxes], teachers.clip, "tight")
        for stage, detector in detectors.items():
            rows[stage_title(stage)].append(detector.embed_regions(pixels, boxes))
    if len(set(labels)) < 2:
        return [], []
    return [EmbeddingPanel(title=title, embeddings=torch.cat(parts).numpy()) for title, parts in rows.items()], labels


def _defined(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float("nan") if value is None else value for name, value in values.items()}
