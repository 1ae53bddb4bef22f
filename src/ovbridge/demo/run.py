"""The demo, step by step. Every step finds what it has already done, so the same command goes on after a kill."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovbridge.audit.run import summary_for
from ovbridge.config_tree import apply_overrides
from ovbridge.console import stderr
from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.ovd_files import TRAIN_FILE, VAL_FILE
from ovbridge.demo.clock import StepClock
from ovbridge.demo.settings import DemoSettings, claim_folder, with_prerequisites
from ovbridge.evaluation.protocols import COCO_DETECTIONS, evaluate
from ovbridge.evaluation.results_file import write_results
from ovbridge.evaluation.run import predict
from ovbridge.images import read_image
from ovbridge.inference import Detector
from ovbridge.label_store import save_text_bank
from ovbridge.labeling.labellers import JointLabeller, RegionLabeller, TagLabeller
from ovbridge.labeling.run import label_images
from ovbridge.labeling.sources import names_by_image
from ovbridge.recipes import recipe_named
from ovbridge.recipes.world import BEYOND, TAG_SIZE_WEIGHT
from ovbridge.report.paper import stage_title
from ovbridge.run_config import RunConfig
from ovbridge.teachers.clip import ClipTeacher, load_clip
from ovbridge.teachers.mavl.proposer import load_mavl
from ovbridge.teachers.protocol import Proposer
from ovbridge.train_run import train_run
from ovbridge.training.inputs import fingerprint
from ovbridge.training.stages import STAGES
from ovbridge.world_data import paint_ovd_world

EVALUATION_BATCH = 8
SCORE_THRESHOLD = 0.05
"""Detections below it are not scored, as in the official evaluation."""


@dataclass(frozen=True, kw_only=True)
class DemoFolder:
    """Where everything of a demo run lies."""

    root: Path

    @property
    def world(self) -> Path:
        """Pictures and annotations, as `ovbridge world` and `ovbridge prepare coco-ovd` write them."""
        return self.root / "world"

    @property
    def annotations(self) -> Path:
        """The world's annotation files."""
        return self.world / "annotations"

    @property
    def train_annotations(self) -> Path:
        """Boxes of the base classes."""
        return self.annotations / TRAIN_FILE

    @property
    def val_annotations(self) -> Path:
        """Boxes of base and novel classes."""
        return self.annotations / VAL_FILE

    @property
    def val_images(self) -> Path:
        """Pictures to evaluate on."""
        return self.world / "val2017"

    @property
    def label_annotations(self) -> Path:
        """Labels of the image-level folders."""
        return self.annotations / "image_labels.json"

    @property
    def store(self) -> Path:
        """The label store."""
        return self.root / "labels"

    def stage(self, name: str) -> Path:
        """The training run of a stage."""
        return self.root / "train" / name

    def checkpoint(self, stage: str) -> Path:
        """What a stage's training ends in."""
        return self.stage(stage) / "detector.safetensors"

    def predictions(self, stage: str) -> Path:
        """Detections on the validation pictures, as COCO results."""
        return self.root / "evaluation" / f"{stage}_detections.json"

    def results(self, stage: str) -> Path:
        """The numbers of one stage."""
        return self.root / "evaluation" / f"{stage}.json"


@dataclass(frozen=True, kw_only=True)
class Teachers:
    """Who labels."""

    proposer: Proposer
    clip: ClipTeacher


def run_demo(out: Path, settings: DemoSettings, *, teachers: Teachers | None = None) -> dict[str, Any]:
    """Run the pipeline into `out`; returns what `out/results.json` holds and leaves `out/report.html`.

    Args:
        out: new, empty, or a demo run with the same settings, which goes on.
        settings: what to run.
        teachers: instead of those that the settings name.

    Raises:
        ConfigError: `out` holds something else, or a stage does not exist. Other OVBridgeErrors as the steps do.
    """
    stages = with_prerequisites(settings.stages)
    for stage in stages:
        apply_overrides(recipe_named("world", stage), settings.overrides)
    if teachers is None:
        teachers = Teachers(proposer=load_mavl(settings.proposer), clip=load_clip(settings.clip))
    claim_folder(out, settings)
    if settings.effort != 1:
        # Not before the settings are known to be good: an error is one line.
        stderr.print(f"training {settings.effort:.0%} of the usual steps (--effort 1, as with bf16, for all)")
    folder = DemoFolder(root=out.resolve())
    clock = StepClock(folder.root / "steps.json")
    with clock.step("build the world"):
        paint_ovd_world(
            folder.world,
            train=settings.train_images,
            val=settings.val_images,
            image_labels_per_class=settings.image_labels_per_class,
            seed=settings.seed,
        )
    with clock.step("label"):
        _label(folder, teachers)
    records: dict[str, dict[str, Any]] = {}
    for stage in stages:
        with clock.step(f"train {stage_title(stage)}"):
            train_run(stage_config(folder, settings, stage), folder.stage(stage))
        with clock.step(f"evaluate {stage_title(stage)}"):
            records[stage] = _evaluate(folder, stage, settings.seed)
    _publish(folder.checkpoint(stages[-1]), folder.root / "detector.safetensors")
    with clock.step("report"):
        # Here: matplotlib and scikit-learn are wanted only now.
        from ovbridge.demo.findings import collect_findings
        from ovbridge.report.page import render_report
        from ovbridge.report.paper import FINAL, FIRST_VERSION

        findings = collect_findings(folder, settings, teachers, records, clock.seconds)
        numbers = FIRST_VERSION if settings.proposer == "builtin-full" else FINAL
        _write_text(folder.root / "report.html", render_report(findings, paper_numbers=numbers))
    summary = {
        "stages": records,
        "seconds": round(sum(clock.seconds.values()), 1),
        "steps": {name: round(seconds, 1) for name, seconds in clock.seconds.items()},
        "protocol": "ov-coco",
        "dataset": "built-in world",
        "seed": settings.seed,
        "train_images": settings.train_images,
        "val_images": settings.val_images,
        "effort": settings.effort,
        "beyond_the_paper": list(BEYOND) if settings.beyond and "rkd_pis_wt" in stages else [],
        "proposer": teachers.proposer.name,
        "proposer_trained_on": teachers.proposer.trained_on,
        "leaks": records[stages[-1]]["leaks"]["verdict"],
        "checkpoint": str(out / "detector.safetensors"),
        "report": str(out / "report.html"),
    }
    write_results(folder.root / "results.json", summary)
    return summary


def stage_config(folder: DemoFolder, settings: DemoSettings, stage: str) -> RunConfig:
    """The world recipe of a stage, on the files of this demo run."""
    recipe = recipe_named("world", stage)
    steps = max(1, round(recipe.loop.steps * settings.effort))
    start = STAGES[stage].init_from
    return apply_overrides(
        replace(
            recipe,
            loop=replace(recipe.loop, steps=steps),
            data=replace(recipe.data, root=str(folder.world), store=str(folder.store)),
            init=str(folder.checkpoint(start)) if start in STAGES else recipe.init,
            seed=settings.seed,
        ),
        (*(BEYOND if settings.beyond and stage == "rkd_pis_wt" else ()), *settings.overrides),
    )


def _label(folder: DemoFolder, teachers: Teachers) -> None:
    coco = CocoDataset.load(folder.train_annotations)
    tagged = load_tagged_images(folder.label_annotations, vocabulary=coco.vocabulary)
    save_text_bank(folder.store, teachers.clip.embed_names(coco.vocabulary.names))
    regions = RegionLabeller(proposer=teachers.proposer, encoder=teachers.clip)
    # A scene without a base box is never trained on, so its regions would not be read.
    boxed = [image.file_name for image in coco.images if len(image.boxes_xyxy)]
    label_folder = folder.world / "image_labels"
    label_images(folder.store, folder.world / "train2017", boxed, regions, read_image=read_image)
    names_of = names_by_image(tagged)
    # People sorted these pictures into folders, so every label has a box, however unsure (threshold 0, paper §4).
    tags = TagLabeller(proposer=teachers.proposer, names_of=names_of, threshold=0.0, size_weight=TAG_SIZE_WEIGHT)
    both = JointLabeller(regions=regions, tags=tags)
    label_images(folder.store, label_folder, list(names_of), both, read_image=read_image)


def _evaluate(folder: DemoFolder, stage: str, seed: int) -> dict[str, Any]:
    """The record of one stage; read back where this very checkpoint was evaluated before."""
    checkpoint = folder.checkpoint(stage)
    digest = fingerprint(checkpoint)
    if folder.results(stage).exists() and folder.predictions(stage).exists():
        before: dict[str, Any] = json.loads(folder.results(stage).read_text())
        if before["checkpoint_sha256"] == digest:
            return before
    began = time.monotonic()
    detector = Detector.load(checkpoint)
    dataset = CocoDataset.load(folder.val_annotations)
    detections = predict(
        lambda images: detector.detect_batch(images, score_threshold=SCORE_THRESHOLD, max_detections=COCO_DETECTIONS),
        dataset,
        folder.val_images,
        EVALUATION_BATCH,
    )
    record = {
        **evaluate(folder.val_annotations, detections, "ov-coco"),
        "checkpoint": str(checkpoint.relative_to(folder.root)),
        "checkpoint_sha256": digest,
        "stage": stage,
        "seed": seed,
        "leaks": summary_for(str(checkpoint), folder.val_annotations),
        "seconds": round(time.monotonic() - began, 2),
    }
    write_results(folder.predictions(stage), detections)
    write_results(folder.results(stage), record)
    return record


def _publish(checkpoint: Path, target: Path) -> None:
    aside = target.with_name(target.name + ".part")
    shutil.copyfile(checkpoint, aside)
    aside.replace(target)


def _write_text(path: Path, text: str) -> None:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
