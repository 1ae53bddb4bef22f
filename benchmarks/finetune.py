"""Fine-tuning on 20 pictures of 3 new nouns of the built-in world, anchored and naive, with what each forgets.

    python benchmarks/finetune.py --checkpoint runs/demo/detector.safetensors --out runs/finetune --seed 88

The new nouns are among the 15 that no stage has ever had a label of. Figures are AP50 in percent on held-out pictures:
"new" over the 3 nouns, "held-out" over the 17 novel ones, "base" over the 48 base ones.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import time
from pathlib import Path
from typing import Any

import torch

from ovbridge.finetune.run import FinetuneConfig, Holdout, finetune
from ovbridge.world.nouns import NOUNS
from ovbridge.world.write import write_world

RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=88, help="of the world, the choice of nouns and the tuning")
    parser.add_argument("--classes", default="", help="new nouns, separated by commas; by default 3 drawn by the seed")
    parser.add_argument("--images", type=int, default=20, help="pictures to learn from")
    parser.add_argument("--train", type=int, default=600, help="pictures to choose them from")
    parser.add_argument("--val", type=int, default=600, help="pictures painted for measuring")
    parser.add_argument("--common", type=int, default=150, help="of those without a new noun, how many are used")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--naive-steps", type=int, default=None, help="by default as many as --steps; 0 leaves it out")
    parser.add_argument("--learning-rate", type=float, default=FinetuneConfig.learning_rate)
    parser.add_argument("--trunk-learning-rate", type=float, default=FinetuneConfig.trunk_learning_rate)
    parser.add_argument("--distillation", type=float, default=1.0)
    parser.add_argument("--wise", type=float, default=1.0)
    parser.add_argument("--name", default="finetune", help="of the files in benchmarks/results")
    settings = parser.parse_args()
    torch.manual_seed(0)
    classes = tuple(settings.classes.split(",")) if settings.classes else drawn_classes(settings.seed)
    world = settings.out / "world"
    write_world(world, train=settings.train, val=settings.val, seed=settings.seed, image_labels_per_class=0)
    mine = settings.out / "mine.json"
    mine.write_text(json.dumps(some_boxes(world, classes, settings.images)))
    held = settings.out / "holdout.json"
    held.write_text(json.dumps(holdout(world, classes, settings.common)))
    runs: dict[str, dict[str, Any]] = {}
    naive_steps = settings.steps if settings.naive_steps is None else settings.naive_steps
    for name, naive, steps in (("anchored", False, settings.steps), ("naive", True, naive_steps)):
        if not steps:
            continue
        began, cpu = time.monotonic(), time.process_time()
        figures = finetune(
            settings.checkpoint,
            mine,
            world / "train2017",
            settings.out / name,
            config=FinetuneConfig(
                steps=steps,
                learning_rate=settings.learning_rate,
                trunk_learning_rate=settings.trunk_learning_rate,
                distillation=settings.distillation,
                wise=1.0 if naive else settings.wise,
                naive=naive,
                seed=settings.seed,
            ),
            holdout=Holdout(annotations=held, images=world / "val2017"),
        )
        seconds, used = time.monotonic() - began, time.process_time() - cpu
        figures.pop("detector")  # a path of this machine
        runs[name] = {**figures, "seconds": round(seconds, 1), "cpu_seconds": round(used, 1)}
        print(name, json.dumps({k: figures[k] for k in ("before", "after")}), flush=True)
    record = {
        "classes": list(classes),
        "seed": settings.seed,
        "images": settings.images,
        "checkpoint": str(settings.checkpoint),
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "load_average": os.getloadavg(),
        "runs": runs,
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{settings.name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"{settings.name}.md").write_text(table(record))
    print(table(record))


def drawn_classes(seed: int) -> tuple[str, ...]:
    """Three nouns that are never labelled."""
    return tuple(random.Random(seed).sample([noun.name for noun in NOUNS if noun.role == "unused"], 3))


def _read(world: Path, split: str, classes: tuple[str, ...]) -> tuple[dict[str, Any], set[int], set[int]]:
    """The annotations of a split, the ids of the given classes, and of the pictures that hold one (no crowd)."""
    payload = json.loads((world / "annotations" / f"instances_{split}2017.json").read_text())
    ids = {c["id"] for c in payload["categories"] if c["name"] in classes}
    holders = {a["image_id"] for a in payload["annotations"] if a["category_id"] in ids and not a["iscrowd"]}
    return payload, ids, holders


def some_boxes(world: Path, classes: tuple[str, ...], count: int) -> dict[str, Any]:
    """The first pictures that hold a new noun, with the boxes of these nouns alone; every noun gets its turn."""
    payload, ids, holders = _read(world, "train", classes)
    chosen: list[int] = []
    of = {i: sorted({a["image_id"] for a in payload["annotations"] if a["category_id"] == i} & holders) for i in ids}
    while len(chosen) < count and any(of.values()):
        for images in of.values():
            while images and images[0] in chosen:
                images.pop(0)
            if images and len(chosen) < count:
                chosen.append(images.pop(0))
    return {
        "images": [i for i in payload["images"] if i["id"] in chosen],
        "annotations": [a for a in payload["annotations"] if a["image_id"] in chosen and a["category_id"] in ids],
        # Numbered anew and without roles: as a user's file would be.
        "categories": [{"id": c["id"], "name": c["name"]} for c in payload["categories"] if c["id"] in ids],
    }


def holdout(world: Path, classes: tuple[str, ...], common: int) -> dict[str, Any]:
    """All pictures with a new noun, and so many others; every noun's boxes."""
    payload, _, holders = _read(world, "val", classes)
    others = [i["id"] for i in payload["images"] if i["id"] not in holders][:common]
    chosen = holders | set(others)
    return {
        **payload,
        "images": [i for i in payload["images"] if i["id"] in chosen],
        "annotations": [a for a in payload["annotations"] if a["image_id"] in chosen],
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    boxes = ", ".join(record["classes"])
    lines = [
        f"Fine-tuning on {record['images']} pictures of {boxes} (world seed {record['seed']}), {record['machine']}, "
        f"torch {record['versions']['torch']}, load {record['load_average'][0]:.1f}. AP50 in percent.",
        "",
        "| | new before | new after | held-out before | held-out after | base before | base after | CPU s |",
        "|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for name, run in record["runs"].items():
        figures = [run[when][what] for what in ("mine", "held_out", "base") for when in ("before", "after")]
        cells = ["-" if value is None else f"{value:.1f}" for value in figures]
        lines.append(f"| {name} | {' | '.join(cells)} | {run['cpu_seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
