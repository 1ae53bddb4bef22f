"""Running suites: every run trained and evaluated once a seed, in an order in which each finds what it starts from.

The same command goes on after a kill: a finished training and an evaluation of that very checkpoint are left alone.
Started twice at once, the two processes share the runs between them.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ovbridge.ablate.page import write_tables
from ovbridge.ablate.settings import AblateSettings, claim
from ovbridge.ablate.sharing import own_file, share_out, taken
from ovbridge.ablate.sources import Evaluation, Sources
from ovbridge.ablate.suite import Run, Suite, in_order, needs, with_rows
from ovbridge.ablate.suites import suite_named
from ovbridge.ablate.table import Measured, SuiteResult, summarise
from ovbridge.audit.run import summary_for
from ovbridge.config_tree import apply_overrides, to_json
from ovbridge.console import stderr
from ovbridge.data.coco import CocoDataset
from ovbridge.demo.clock import StepClock
from ovbridge.errors import ConfigError
from ovbridge.evaluation.coco_ap import IouType
from ovbridge.evaluation.protocols import evaluate, expects_federated, limits_of
from ovbridge.evaluation.results_file import write_results
from ovbridge.evaluation.run import predict
from ovbridge.inference import Detector
from ovbridge.recipes import recipe_named
from ovbridge.rescoring import ScoreFusion
from ovbridge.rescoring.load import fused_detector
from ovbridge.run_config import RunConfig
from ovbridge.structures import Detections
from ovbridge.train_run import train_run
from ovbridge.training.inputs import fingerprint

BATCH = 8
"""Images detected in one pass."""
WAIT_SECONDS = 2.0
"""Between two looks at what another process is doing."""


@dataclass(frozen=True, kw_only=True)
class AblateFolder:
    """Where everything of an ablation lies."""

    root: Path

    def training(self, seed: int, run: str) -> Path:
        """The training run of a row."""
        return self.root / f"seed{seed}" / "train" / run

    def checkpoint(self, seed: int, run: str) -> Path:
        """What it ends in."""
        return self.training(seed, run) / "detector.safetensors"

    def record(self, seed: int, run: str) -> Path:
        """The numbers of a row."""
        return self.root / f"seed{seed}" / "evaluation" / f"{run}.json"

    def lock(self, seed: int, run: str) -> Path:
        """Held by the process that trains and evaluates a row."""
        return self.root / f"seed{seed}" / "locks" / f"{run}.lock"

    def predictions(self, seed: int, run: str) -> Path:
        """Its detections, as COCO results."""
        return self.root / f"seed{seed}" / "evaluation" / f"{run}_detections.json"


def run_suites(
    out: Path, names: Sequence[str], seeds: Sequence[int], settings: AblateSettings, *, rows: Sequence[str] = ()
) -> dict[str, SuiteResult]:
    """Run every suite for every seed into `out`; returns the tables by suite.

    With `rows`, only those and what they build on. Raises ConfigError where `out` holds another ablation, a suite needs
    data that were not given, or no suite has a row.
    """
    whole = [suite_named(name, settings.family) for name in names]
    known = {run.name for suite in whole for run in suite.runs}
    if unknown := [row for row in rows if row not in known]:
        raise ConfigError(f"no suite asked for has a row {unknown[0]!r}: see ovbridge ablate --list")
    suites = [suite for suite in (with_rows(suite, rows) for suite in whole) if suite.runs]
    runs = in_order([run for suite in suites for run in suite.runs])
    sources = Sources(out.absolute(), settings)
    for run in runs:
        if run.is_trained:
            apply_overrides(_recipe(run, settings), run.overrides)
    if not seeds:
        raise ConfigError("--seeds names none: give at least one")
    sources.check(runs)
    claim(out, settings)
    folder = AblateFolder(root=out.absolute())
    records: dict[str, dict[int, dict[str, Any]]] = {run.name: {} for run in runs}

    def is_ready(task: tuple[int, Run]) -> bool:
        return all(task[0] in records[before] for before in needs(task[1]))

    def do(task: tuple[int, Run]) -> bool:
        seed, run = task
        with taken(folder.lock(seed, run.name)) as ours:
            if not ours:
                return False
            if run.is_trained and not folder.checkpoint(seed, run.name).exists():
                with clock.step(f"train {run.name}, seed {seed}"):
                    train_run(run_config(folder, sources, settings, run, seed), folder.training(seed, run.name))
            records[run.name][seed] = _evaluate(folder, sources, run, seed, clock)
        whole = [s for s in seeds if all(s in by_seed for by_seed in records.values())]
        if seed in whole:
            # After every seed, so that a long ablation shows what it has so far.
            so_far = {name: {s: by_seed[s] for s in whole} for name, by_seed in records.items()}
            write_tables(out, {suite.name: _result(suite, so_far, settings) for suite in suites})
        return True

    with own_file(out, "steps", ".json") as steps:
        clock = StepClock(steps)
        with clock.step("data"):
            sources.prepare()
        share_out([(seed, run) for seed in seeds for run in runs], is_ready, do, lambda: time.sleep(WAIT_SECONDS))
    tables = {suite.name: _result(suite, records, settings) for suite in suites}
    write_tables(out, tables)
    stderr.print(f"{len(runs)} runs, {len(seeds)} seeds, {sum(clock.seconds.values()):.0f} s in all")
    return tables


def run_config(folder: AblateFolder, sources: Sources, settings: AblateSettings, run: Run, seed: int) -> RunConfig:
    """The recipe of a row with its overrides, on the data and the start of its seed."""
    recipe = _recipe(run, settings)
    data = sources.training_data(run, seed, partial(folder.checkpoint, seed))
    init = str(folder.checkpoint(seed, run.start)) if run.start else recipe.init
    return apply_overrides(replace(recipe, data=data, init=init, seed=seed), run.overrides)


def _recipe(run: Run, settings: AblateSettings) -> RunConfig:
    """The recipe with the overrides of the ablation and the row's number of steps."""
    recipe = apply_overrides(recipe_named(settings.family, run.stage), settings.overrides)
    steps = recipe.loop.steps
    if run.steps_of:
        others = (apply_overrides(recipe_named(settings.family, stage), settings.overrides) for stage in run.steps_of)
        steps = sum(other.loop.steps for other in others)
    return replace(recipe, loop=replace(recipe.loop, steps=max(1, round(steps * run.steps_factor))))


def _evaluate(folder: AblateFolder, sources: Sources, run: Run, seed: int, clock: StepClock) -> dict[str, Any]:
    """The record of a row: the one that is there if it is of this checkpoint and fusion, else a new one."""
    checkpoint = folder.checkpoint(seed, run.evaluates or run.name)
    path, digest = folder.record(seed, run.name), fingerprint(checkpoint)
    if path.exists():
        before: dict[str, Any] = json.loads(path.read_text())
        if before.get("checkpoint_sha256") == digest and before.get("fuse") == list(run.fuse):
            return before
    began = time.monotonic()
    with clock.step(f"evaluate {run.name}, seed {seed}"):
        target = sources.evaluation(run)
        detections, iou_type = _detect(checkpoint, target, run)
        record = {
            **evaluate(target.annotations, detections, target.protocol, iou_type=iou_type),
            "checkpoint": str(checkpoint.relative_to(folder.root)),
            "checkpoint_sha256": digest,
            "stage": run.stage or run.evaluates,
            "fuse": list(run.fuse),
            "seed": seed,
            "seconds": round(time.monotonic() - began, 2),
            "leaks": summary_for(
                # The classes that training must not have seen are those of its own data set.
                str(checkpoint),
                sources.evaluation(replace(run, data="default")).annotations,
                strict=run.labels == "strict",
            ),
        }
        write_results(folder.predictions(seed, run.name), detections)
        write_results(path, record)
    return record


def _detect(checkpoint: Path, target: Evaluation, run: Run) -> tuple[list[dict[str, Any]], IouType]:
    """Detections of every image, and what of them is compared: masks by LVIS rules, where the detector has any."""
    dataset = CocoDataset.load(target.annotations, federated=expects_federated(target.protocol))
    limits = limits_of(target.protocol, federated=target.is_federated)
    detector = Detector.load(checkpoint)
    fusion = apply_overrides(ScoreFusion(), run.fuse)
    fused = None if fusion.changes_nothing else fused_detector(detector, dataset.vocabulary, fusion)
    asked = detector.queries_for(dataset.vocabulary.names)

    def detect(pixels: Sequence[np.ndarray]) -> list[Detections]:
        if fused is not None:
            return fused.detect_batch(
                pixels, score_threshold=limits.score_threshold, max_detections=limits.max_detections
            )
        return detector.detect_batch(
            pixels, asked, score_threshold=limits.score_threshold, max_detections=limits.max_detections
        )

    masks = target.is_federated and detector.model.mask_head is not None
    return predict(detect, dataset, target.images, BATCH), "segm" if masks else "bbox"


def _result(
    suite: Suite, records: Mapping[str, Mapping[int, Mapping[str, Any]]], settings: AblateSettings
) -> SuiteResult:
    measured = {run.name: Measured.of(next(iter(records[run.name].values()))) for run in suite.runs}
    rows = {
        run.name: {
            seed: {k: v for k, v in record[measured[run.name].key].items() if v is not None}
            for seed, record in records[run.name].items()
        }
        for run in suite.runs
    }
    verdicts = {
        run.name: next((str(r["leaks"]["verdict"]) for r in records[run.name].values()), "not audited")
        for run in suite.runs
    }
    return summarise(
        suite,
        rows,
        verdicts,
        measured=measured,
        paper_metric="mask AP" if settings.family == "lvis" else "box AP50",
        settings=to_json(settings),
    )
