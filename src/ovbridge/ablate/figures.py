"""The paper's figures from the components suite: one page for a seed, and the precision of pseudo boxes.

The page has the similarity matrices and t-SNE maps of novel regions with their kNN purity, the boxes of the proposal
network beside the proposer's, pictures with base and novel detections, bars of the classes and histograms of scores.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torchvision.ops import box_iou

from ovbridge.ablate.pipeline import pipeline_picture
from ovbridge.ablate.run import AblateFolder
from ovbridge.ablate.settings import AblateSettings
from ovbridge.ablate.table import SuiteResult
from ovbridge.data.coco import CocoDataset
from ovbridge.demo.findings import collect_findings
from ovbridge.demo.run import DemoFolder, Teachers
from ovbridge.demo.settings import DemoSettings
from ovbridge.errors import ConfigError
from ovbridge.images import read_image
from ovbridge.inference import Detector
from ovbridge.label_run import TeacherChoice, load_proposer
from ovbridge.report.drawing import ROLE_COLOURS, data_uri, draw_boxes
from ovbridge.report.page import render_report
from ovbridge.report.paper import FINAL, FIRST_VERSION, stage_title
from ovbridge.report.pseudo_labels import NamedBoxQuality, threshold_chart
from ovbridge.structures import Proposals
from ovbridge.teachers.clip import load_clip
from ovbridge.teachers.protocol import Proposer, StoredProposer, class_query
from ovbridge.training.label_boxes import PROPOSALS
from ovbridge.training.stages import STAGES

NAMED_BOX_IMAGES = 100
SECOND_RUN = "rkd_pis_wt_second"
SHOWN_SCORE = 0.4
SHOWN_DETECTIONS = 12
TILE = (400, 300)
PROPOSAL_COLOUR = (245, 158, 11)
PANELS = ("CLIP", *(stage_title(name) for name in ("base", "rkd", "rkd_pis_wt")))
"""Titles of the models whose region embeddings are compared."""


@dataclass(frozen=True, kw_only=True)
class SeedFolder(DemoFolder):
    """The runs of one seed, laid out as a demo run is."""

    runs: AblateFolder
    seed: int

    def stage(self, name: str) -> Path:
        """The training run of a stage."""
        return self.runs.training(self.seed, name)

    def checkpoint(self, stage: str) -> Path:
        """What it ends in."""
        return self.runs.checkpoint(self.seed, stage)

    def predictions(self, stage: str) -> Path:
        """Its detections."""
        return self.runs.predictions(self.seed, stage)

    def results(self, stage: str) -> Path:
        """Its numbers."""
        return self.runs.record(self.seed, stage)


def draw_figures(out: Path, tables: Mapping[str, SuiteResult], seed: int, settings: AblateSettings) -> dict[str, str]:
    """Write OUT/figures.html from the stages of one seed; returns caption → SVG for the page of tables.

    Raises ConfigError where the stages were not trained, or not in the built-in world.
    """
    runs = AblateFolder(root=out.absolute())
    stages = [name for name in STAGES if runs.record(seed, name).exists()]
    if settings.family != "world" or not stages:
        raise ConfigError("--figures draws from the stages of a world: add the suite components to the command")
    folder = SeedFolder(root=out.absolute(), runs=runs, seed=seed)
    records = {name: json.loads(runs.record(seed, name).read_text()) for name in stages}
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    proposer = load_proposer(TeacherChoice(proposer=settings.proposer), device, for_names=True)
    if isinstance(proposer, StoredProposer):
        raise ConfigError("--figures asks the proposer about new pictures: stored boxes cannot answer")
    teachers = Teachers(proposer=proposer, clip=load_clip(settings.clip, device))
    world = settings.world
    demo = DemoSettings(
        seed=seed,
        stages=tuple(stages),
        train_images=world.train_images,
        val_images=world.val_images,
        beyond=False,  # the suite's last stage is the paper's
    )
    findings = collect_findings(folder, demo, teachers, records, {})
    command = ["ovbridge", "ablate", *tables, "--out", str(out), "--seeds", str(seed), "--figures"]
    findings = replace(
        findings, title="Figures of the ablation", facts={**findings.facts, "Command": shlex.join(command)}
    )
    # The paper's four panels, whatever else was trained.
    findings = replace(findings, panels=[panel for panel in findings.panels if panel.title in PANELS])
    numbers = FIRST_VERSION if settings.proposer == "builtin-full" else FINAL
    (out / "figures.html").write_text(render_report(findings, paper_numbers=numbers), encoding="utf-8")
    dataset = CocoDataset.load(folder.val_annotations)
    quality = named_box_quality(dataset, folder.val_images, proposer)
    caption = (
        "Best box of “every NAME” for the names that are in a validation picture: how many are right (IoU 0.5) and how "
        "many are left, by the score from which they are trusted. Dotted: the paper’s threshold for captions."
    )
    figures = {
        "Training: pseudo boxes and CLIP’s regions come from the same proposer; W_T turns what distillation taught "
        "into what classifies.": pipeline_picture(),
        caption: threshold_chart(quality),
    }
    if "base" in stages:
        boxes = named_boxes_grid(dataset, folder.val_images, Detector.load(runs.checkpoint(seed, "base")), proposer)
        figures[
            "Where an image-level label is taught, for names that are in the picture. Above: the largest of the base "
            "stage’s proposals, one box for every name (max-size). Below: the proposer’s best box of “every NAME”; "
            "purple base, green novel."
        ] = f'<img alt="Boxes for image-level labels" src="{data_uri(boxes)}">'
    if runs.predictions(seed, SECOND_RUN).exists():
        shown = (
            f"The second data set under its own names, nothing trained on it ({SECOND_RUN}); purple base, green novel."
        )
        figures[shown] = f'<img alt="Detections in the second data set" src="{data_uri(second_grid(out, runs, seed))}">'
    return figures


def second_grid(out: Path, runs: AblateFolder, seed: int) -> Image.Image:
    """Eight pictures of the second world with the best model's detections, 2 rows of 4."""
    dataset = CocoDataset.load(out / "second_world" / "second_val.json")
    roles = dict(zip(dataset.vocabulary.names, dataset.vocabulary.roles, strict=True))
    name_of = dict(zip(dataset.vocabulary.category_ids, dataset.vocabulary.names, strict=True))
    results = json.loads(runs.predictions(seed, SECOND_RUN).read_text())
    grid = Image.new("RGB", (4 * TILE[0], 2 * TILE[1]), "white")
    for k, image in enumerate(dataset.images[:8]):
        found = [r for r in results if r["image_id"] == image.image_id and r["score"] >= SHOWN_SCORE]
        found = sorted(found, key=lambda r: -r["score"])[:SHOWN_DETECTIONS]
        boxes = np.array([r["bbox"] for r in found], dtype=np.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        names = [name_of[r["category_id"]] for r in found]
        picture = draw_boxes(
            read_image(out / "second_world" / "images" / image.file_name),
            boxes,
            [ROLE_COLOURS[roles[name]] for name in names],
            [f"{name} {r['score']:.2f}" for name, r in zip(names, found, strict=True)],
            magnify=2.0,
        )
        grid.paste(ImageOps.pad(picture, TILE, color="white"), (k % 4 * TILE[0], k // 4 * TILE[1]))
    return grid


def named_boxes_grid(dataset: CocoDataset, images: Path, base: Detector, proposer: Proposer) -> Image.Image:
    """The first four pictures with a novel object: the largest proposal above, the best box of each name below."""
    names, roles = dataset.vocabulary.names, dataset.vocabulary.roles
    grid = Image.new("RGB", (4 * TILE[0], 2 * TILE[1]), "white")
    with_novel = [i for i in dataset.images if any(roles[c] == "novel" for c in i.class_ids)]
    for k, image in enumerate(with_novel[:4]):
        pixels = read_image(images / image.file_name)
        classes = [int(c) for c in np.unique(image.class_ids) if roles[c] in ("base", "novel")]
        proposals = base.propose(pixels, PROPOSALS).boxes_xyxy.numpy()
        largest = proposals[[((proposals[:, 2:] - proposals[:, :2]).prod(axis=1)).argmax()]]
        answers = proposer.propose([pixels], [[class_query(names[c]) for c in classes]])[0]
        found = [(c, a.boxes_xyxy[0].numpy()) for c, a in zip(classes, answers, strict=True) if len(a)]
        pictures = (
            draw_boxes(pixels, largest, [PROPOSAL_COLOUR], [", ".join(names[c] for c in classes)], magnify=2.0),
            draw_boxes(
                pixels,
                np.array([box for _, box in found]).reshape(-1, 4),
                [ROLE_COLOURS[roles[c]] for c, _ in found],
                [names[c] for c, _ in found],
                magnify=2.0,
            ),
        )
        for row, picture in enumerate(pictures):
            grid.paste(ImageOps.pad(picture, TILE, color="white"), (k * TILE[0], row * TILE[1]))
    return grid


def named_box_quality(dataset: CocoDataset, images: Path, proposer: Proposer) -> dict[str, NamedBoxQuality]:
    """Role → scores of the best named boxes in the first pictures, and which are right."""
    names, roles = dataset.vocabulary.names, dataset.vocabulary.roles
    scores: dict[str, list[float]] = {"base": [], "novel": []}
    right: dict[str, list[bool]] = {"base": [], "novel": []}
    for image in dataset.images[:NAMED_BOX_IMAGES]:
        classes = [int(c) for c in np.unique(image.class_ids) if roles[c] in scores]
        if not classes:
            continue
        queries = [class_query(names[c]) for c in classes]
        for c, found in zip(
            classes, proposer.propose([read_image(images / image.file_name)], [queries])[0], strict=True
        ):
            if len(found):
                scores[roles[c]].append(float(found.scores[0]))
                right[roles[c]].append(_hits(found, torch.from_numpy(image.boxes_xyxy[image.class_ids == c])))
    return {
        role: NamedBoxQuality(scores_N=np.array(values), right_N=np.array(right[role], dtype=bool))
        for role, values in scores.items()
        if values
    }


def _hits(found: Proposals, truth_xyxy: torch.Tensor) -> bool:
    return bool((box_iou(found.boxes_xyxy[:1].float(), truth_xyxy.float()) >= 0.5).any())
