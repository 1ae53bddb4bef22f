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

from ovbridge.ablate.run import AblateFolder
from ovbridge.ablate.settings import AblateSettings
from ovbridge.ablate.table import SuiteResult
from ovbridge.data.coco import CocoDataset
from ovbridge.demo.findings import collect_findings
from ovbridge.demo.run import DemoFolder, Teachers
from ovbridge.demo.settings import DemoSettings
from ovbridge.errors import ConfigError
from ovbridge.images import read_image
from ovbridge.label_run import TeacherChoice, load_proposer
from ovbridge.report.drawing import ROLE_COLOURS, data_uri, draw_boxes
from ovbridge.report.page import render_report
from ovbridge.report.paper import FINAL, FIRST_VERSION
from ovbridge.report.pseudo_labels import NamedBoxQuality, threshold_chart
from ovbridge.structures import Proposals
from ovbridge.teachers.clip import load_clip
from ovbridge.teachers.protocol import Proposer, StoredProposer, class_query
from ovbridge.training.stages import STAGES

NAMED_BOX_IMAGES = 100
SECOND_RUN = "rkd_pis_wt_second"
SHOWN_SCORE = 0.4
TILE = (400, 300)


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
    demo = DemoSettings(seed=seed, stages=tuple(stages), train_images=world.train_images, val_images=world.val_images)
    findings = collect_findings(folder, demo, teachers, records, {})
    command = ["ovbridge", "ablate", *tables, "--out", str(out), "--seeds", str(seed), "--figures"]
    findings = replace(
        findings, title="Figures of the ablation", facts={**findings.facts, "Command": shlex.join(command)}
    )
    numbers = FIRST_VERSION if settings.proposer == "builtin-full" else FINAL
    (out / "figures.html").write_text(render_report(findings, paper_numbers=numbers), encoding="utf-8")
    quality = named_box_quality(CocoDataset.load(folder.val_annotations), folder.val_images, proposer)
    caption = (
        "Best box of “every NAME” for the names that are in a validation picture: how many are right (IoU 0.5) and how "
        "many are left, by the score from which they are trusted. Dotted: the paper’s threshold for captions."
    )
    figures = {caption: threshold_chart(quality)}
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
        grid.paste(ImageOps.contain(picture, TILE), (k % 4 * TILE[0], k // 4 * TILE[1]))
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
