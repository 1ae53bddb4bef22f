"""Fine-tuning on 20 pictures of 3 new nouns of the built-in world, anchored and naive, with what each forgets.

    python benchmarks/finetune.py --out runs/finetune

Several draws: a seed gives the world, the 3 nouns out of the 15 that no stage has ever had a label of, and the order of
the tuning. Seeds 88 and 99 are for choosing settings, so they are not among the default ones. Figures are AP50 in
percent on held-out pictures: "new" over the 3 nouns, "held-out" over the 17 novel ones, "base" over the 48 base ones.
Draws 101 to 112 were looked at before the present defaults were chosen. A draw takes 3 to 8 minutes of one free
core; one that is complete is not computed again.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from ovbridge.finetune.run import FinetuneConfig, Holdout, finetune
from ovbridge.inference.sources import checkpoint_path
from ovbridge.training.inputs import fingerprint
from ovbridge.world.nouns import NOUNS
from ovbridge.world.write import write_world

RESULTS = Path(__file__).parent / "results"
ALLOWED_DROP = 2.0
"""Points of held-out AP50, from issue 6; new classes must reach TARGET."""
TARGET = 50.0
SETTINGS = (
    "steps",
    "versions",
    "learning_rate",
    "trunk_learning_rate",
    "anchor",
    "name_anchor",
    "distillation",
    "wise",
)
WHAT = ("mine", "held_out", "base")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="builtin")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", default=[113, 114, 115, 116], help="one draw each")
    parser.add_argument("--classes", default="", help="new nouns, separated by commas; by default 3 drawn by the seed")
    parser.add_argument("--images", type=int, default=20, help="pictures to learn from")
    parser.add_argument("--train", type=int, default=600, help="pictures to choose them from")
    parser.add_argument("--val", type=int, default=1200, help="pictures painted for measuring")
    parser.add_argument("--common", type=int, default=150, help="of those without a new noun, how many are used")
    parser.add_argument("--steps", type=int, default=FinetuneConfig.steps)
    parser.add_argument("--naive-steps", type=int, default=None, help="by default as many as --steps; 0 leaves it out")
    parser.add_argument("--versions", type=int, default=FinetuneConfig.versions)
    parser.add_argument("--learning-rate", type=float, default=FinetuneConfig.learning_rate)
    parser.add_argument("--trunk-learning-rate", type=float, default=FinetuneConfig.trunk_learning_rate)
    parser.add_argument("--anchor", type=float, default=FinetuneConfig.anchor)
    parser.add_argument("--name-anchor", type=float, default=FinetuneConfig.name_anchor)
    parser.add_argument("--distillation", type=float, default=FinetuneConfig.distillation)
    parser.add_argument("--wise", type=float, default=FinetuneConfig.wise)
    parser.add_argument("--name", default="finetune", help="of the files in benchmarks/results")
    settings = parser.parse_args()
    torch.manual_seed(0)
    checkpoint = checkpoint_path(settings.checkpoint)
    draws = [one_draw(settings, checkpoint, seed) for seed in settings.seeds]
    record = {
        "images": settings.images,
        "checkpoint": {"name": settings.checkpoint, "fingerprint": fingerprint(checkpoint)},
        "settings": {name: getattr(settings, name) for name in SETTINGS},
        "machine": f"{platform.machine()}, {os.cpu_count()} cores, {torch.get_num_threads()} thread(s) used",
        "versions": {"torch": torch.__version__, "python": platform.python_version()},
        "load_average": os.getloadavg(),
        "draws": draws,
        "summary": summary(draws),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{settings.name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"{settings.name}.md").write_text(table(record))
    print(table(record))


def one_draw(settings: argparse.Namespace, checkpoint: Path, seed: int) -> dict[str, Any]:
    """A world, three nouns, both runs; read from `draw.json` where it was computed with the same arguments before."""
    folder = settings.out / str(seed)
    arguments = {name: str(value) for name, value in vars(settings).items() if name not in ("seeds", "name", "out")}
    arguments |= {"checkpoint": str(fingerprint(checkpoint))}
    kept = folder / "draw.json"
    if kept.exists():
        known = json.loads(kept.read_text())
        if known["arguments"] == arguments:
            return {name: value for name, value in known.items() if name != "arguments"}
    classes = tuple(settings.classes.split(",")) if settings.classes else drawn_classes(seed)
    world = folder / "world"
    write_world(world, train=settings.train, val=settings.val, seed=seed, image_labels_per_class=0)
    mine, held = folder / "mine.json", folder / "holdout.json"
    mine.write_text(json.dumps(some_boxes(world, classes, settings.images)))
    held.write_text(json.dumps(holdout(world, classes, settings.common)))
    runs: dict[str, dict[str, Any]] = {}
    naive_steps = settings.steps if settings.naive_steps is None else settings.naive_steps
    for name, naive, steps in (("anchored", False, settings.steps), ("naive", True, naive_steps)):
        if not steps:
            continue
        began, cpu = time.monotonic(), time.process_time()
        figures = finetune(
            checkpoint,
            mine,
            world / "train2017",
            folder / name,
            config=FinetuneConfig(
                steps=steps,
                versions=settings.versions,
                learning_rate=settings.learning_rate,
                trunk_learning_rate=settings.trunk_learning_rate,
                anchor=settings.anchor,
                name_anchor=settings.name_anchor,
                distillation=settings.distillation,
                wise=1.0 if naive else settings.wise,
                naive=naive,
                seed=seed,
            ),
            holdout=Holdout(annotations=held, images=world / "val2017"),
        )
        seconds, used = time.monotonic() - began, time.process_time() - cpu
        for path in ("detector", "checkpoint"):  # of this machine
            figures.pop(path)
        runs[name] = {**figures, "seconds": round(seconds, 1), "cpu_seconds": round(used, 1)}
        print(seed, name, json.dumps({k: figures[k] for k in ("before", "after")}), flush=True)
    draw = {"seed": seed, "classes": list(classes), "runs": runs}
    kept.write_text(json.dumps({**draw, "arguments": arguments}, indent=2) + "\n")
    return draw


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


def summary(draws: list[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and standard deviation over the draws, a run and a figure each; "drop" is held-out before minus after."""
    found: dict[str, dict[str, dict[str, float]]] = {}
    for name in draws[0]["runs"]:
        runs = [draw["runs"][name] for draw in draws]
        figures = {f"{what} {when}": [run[when][what] for run in runs] for what in WHAT for when in ("before", "after")}
        figures["drop"] = [run["before"]["held_out"] - run["after"]["held_out"] for run in runs]
        found[name] = {
            figure: {
                "mean": round(statistics.mean(values), 2),
                "deviation": round(statistics.stdev(values), 2) if len(values) > 1 else 0.0,
            }
            for figure, values in figures.items()
            if None not in values
        }
    return found


def table(record: dict[str, Any]) -> str:
    """The record as Markdown."""
    lines = [
        f"Fine-tuning on {record['images']} pictures of 3 new nouns, {record['settings']['steps']} steps, "
        f"{record['machine']}, torch {record['versions']['torch']}, load {record['load_average'][0]:.1f}. "
        "AP50 in percent; the last rows are mean ± standard deviation over the draws.",
        "",
        "| draw | | new before | new after | held-out before | held-out after | base before | base after | CPU s |",
        "|---|---|---:|---:|---:|---:|---:|---:|---:|",
    ]
    for draw in record["draws"]:
        for name, run in draw["runs"].items():
            figures = [run[when][what] for what in WHAT for when in ("before", "after")]
            cells = ["-" if value is None else f"{value:.1f}" for value in figures]
            title = f"{draw['seed']}: {', '.join(draw['classes'])}"
            lines.append(f"| {title} | {name} | {' | '.join(cells)} | {run['cpu_seconds']:.0f} |")
    for name, figures in record["summary"].items():
        cells = [_spread(figures.get(f"{what} {when}")) for what in WHAT for when in ("before", "after")]
        lines.append(f"| **mean** | **{name}** | {' | '.join(cells)} | |")
    if "anchored" in record["summary"]:
        anchored = record["summary"]["anchored"]
        new, drop = anchored["mine after"]["mean"], anchored["drop"]["mean"]
        lines += [
            "",
            f"Anchored, on average: new classes {new:.1f} (target {TARGET:g}: {_verdict(new >= TARGET)}), "
            f"held-out drop {drop:.1f} (at most {ALLOWED_DROP:g}: {_verdict(drop <= ALLOWED_DROP)}).",
        ]
    return "\n".join(lines) + "\n"


def _spread(figure: dict[str, float] | None) -> str:
    return "-" if figure is None else f"{figure['mean']:.1f} ± {figure['deviation']:.1f}"


def _verdict(reached: bool) -> str:
    return "reached" if reached else "missed"


if __name__ == "__main__":
    main()
