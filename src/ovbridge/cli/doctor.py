"""`ovbridge doctor`: looks over a data set, a label store, a checkpoint or the machine, and names every fault."""

from __future__ import annotations

import json as json_format
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import tyro

from ovbridge.cli.arguments import call
from ovbridge.errors import ConfigError, OVBridgeError

if TYPE_CHECKING:
    from ovbridge.data.inspection import Inspection

EXAMPLES = """\
ovbridge doctor
ovbridge doctor coco
ovbridge doctor coco/annotations/instances_train2017.json --json
ovbridge doctor runs/demo/detector.safetensors
ovbridge doctor leaks runs/demo"""
LEAKS_EXAMPLES = """\
ovbridge doctor leaks runs/demo
ovbridge doctor leaks coco --target coco/annotations/instances_val2017.json --json
ovbridge doctor leaks runs/wt/detector.safetensors --strict --results results.json"""

EXIT_FAULTS_FOUND = 1


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    if list(argv[:1]) == ["leaks"]:
        call(leaks, argv[1:], verb="doctor leaks", examples=LEAKS_EXAMPLES)
    else:
        call(doctor, argv, verb="doctor", examples=EXAMPLES)


def doctor(path: tyro.conf.Positional[Path | None] = None, /, *, json: bool = False) -> None:
    """Check a thing and name every fault; exit code 1 if there is one.

    Args:
        path: Annotation file, image folder, COCO-like folder, label store or checkpoint; nothing means this machine.
        json: Print what was found as JSON.
    """
    from ovbridge.console import stdout

    found = _inspect(path)
    if json:
        print(
            json_format.dumps(
                {
                    "path": None if path is None else str(path),
                    "kind": found.kind,
                    "ok": not found.faults,
                    "facts": found.facts,
                    "faults": found.faults,
                    "notes": found.notes,
                }
            )
        )
    else:
        stdout.print(f"{found.kind}: {path or platform.node()}", soft_wrap=True)
        for name, value in found.facts.items():
            stdout.print(f"  {name}: {value}", soft_wrap=True)
        for note in found.notes:
            stdout.print(f"note: {note}", soft_wrap=True)
        for fault in found.faults:
            stdout.print(f"fault: {fault}", soft_wrap=True)
        stdout.print("no fault found" if not found.faults else f"{len(found.faults)} faults")
    if found.faults:
        sys.exit(EXIT_FAULTS_FOUND)


def leaks(
    path: tyro.conf.Positional[Path],
    /,
    *,
    target: Path | None = None,
    labels: tuple[Path, ...] = (),
    store: Path | None = None,
    results: Path | None = None,
    strict: bool = False,
    json: bool = False,
) -> None:
    """List every way a novel name can have reached training; exit code 1 if one of them is a leak.

    Boxes, class names and synonyms, texts, tags, captions, image folders, pseudo boxes, the proposer's own training.

    Args:
        path: A training run, a demo run, a checkpoint, a data set folder, a label store or an annotation file.
        target: Annotation file whose categories say which classes are novel, where the path does not tell.
        labels: More files with image-level labels or captions that were trained on.
        store: Label store that was trained on, where the path does not tell.
        results: A results.json to write the verdict into.
        strict: The novel names had to be unknown: labels, captions and classifier columns are leaks too.
        json: Print the findings as JSON.
    """
    from ovbridge.audit.findings import merged
    from ovbridge.audit.run import audit_sources, sources_of, with_extra
    from ovbridge.console import stdout

    sources = with_extra(sources_of(path), labels=labels, store=store)
    report = merged([audit_sources(s, target=target, strict=strict) for s in sources])
    record = {"path": str(path), "ok": report.verdict != "leak", **report.to_json()}
    if results is not None:
        from ovbridge.evaluation.results_file import add_leaks

        add_leaks(results, record)
    if json:
        print(json_format.dumps(record))
    else:
        for line in record["looked_at"] + record["notes"]:
            stdout.print(f"looked at {line}", soft_wrap=True)
        for line in record["leaks"]:
            stdout.print(f"leak: {line}", soft_wrap=True)
        for line in record["stated"]:
            stdout.print(f"known: {line}", soft_wrap=True)
        stdout.print(f"verdict: {report.verdict}, {report.novel_classes} novel classes")
    if report.verdict == "leak":
        sys.exit(EXIT_FAULTS_FOUND)


def _inspect(path: Path | None) -> Inspection:
    from ovbridge.data import inspection
    from ovbridge.images import SUFFIXES

    if path is None:
        return _machine()
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a file or folder to check, or nothing to check the machine")
    if path.is_file():
        if path.suffix == ".safetensors":
            return _checkpoint(path)
        if path.suffix.lower() in SUFFIXES:
            return inspection.inspect_images([path])
        return inspection.inspect_annotations(path)
    if inspection.is_dataset(path):
        return inspection.inspect_dataset(path)
    if any(path.glob("*.lance")) or (path / "text").is_dir():
        return _label_store(path)
    if (path / "detector.safetensors").is_file():
        return _checkpoint(path / "detector.safetensors")
    images = inspection.image_paths(path)
    if not images:
        raise ConfigError(f"{path} is no data set, label store, run or image folder: there is nothing to check in it")
    return inspection.inspect_images(images)


def _checkpoint(path: Path) -> Inspection:
    from ovbridge.data.inspection import Inspection
    from ovbridge.detector.checkpoint_file import load_detector

    try:
        _, metadata = load_detector(path)
    except OVBridgeError as error:
        return Inspection(kind="checkpoint", faults=[str(error)])
    return Inspection(
        kind="checkpoint",
        facts={
            "stage": metadata.stage,
            "classes": len(metadata.names),
            "text_encoder": metadata.text_encoder,
            "templates": list(metadata.templates),
            "recipe": metadata.recipe,
            "versions": metadata.versions,
        },
    )


def _label_store(path: Path) -> Inspection:
    from ovbridge.data.inspection import Inspection
    from ovbridge.label_store.store import LabelStore

    try:
        status = LabelStore.open(path).status()
    except OVBridgeError as error:
        return Inspection(kind="label store", faults=[str(error)])
    found = Inspection(kind="label store", facts=status)
    found.faults += [bank["damaged"] for bank in status["text"].values() if "damaged" in bank]
    for table, figures in status.items():
        if isinstance(figures, dict) and figures.get("failed"):
            found.notes.append(f"{table}: {figures['failed']} images failed")
    return found


def _machine() -> Inspection:
    import torch

    from ovbridge.data.inspection import Inspection

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return Inspection(
        kind="machine",
        facts={
            "python": platform.python_version(),
            "torch": str(torch.__version__),
            "cpu_cores": os.cpu_count(),
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "memory_gib": round(memory_gib, 1),
            "gpus": gpus,
        },
    )
