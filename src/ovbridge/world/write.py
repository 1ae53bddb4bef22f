"""The world on disk: pictures, COCO instances, COCO captions, folders of pictures that carry one label each.

A picture depends on the seed, its split and its position alone: it is the same however many are written, by however
many processes. Pictures are written aside and renamed, the JSON files come last, and `world.json` tells which world a
folder holds and whether it is complete; so an interrupted command goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ovbridge.errors import ConfigError
from ovbridge.world.captions import captions_of, phrase_of
from ovbridge.world.nouns import NOUNS
from ovbridge.world.render import render_scene
from ovbridge.world.scene import Scene, compose_label_scene, compose_scene

Split = Literal["train", "val"]
SPLITS: tuple[Split, ...] = ("train", "val")
SPLIT_CODES: dict[Split, int] = {"train": 0, "val": 1}
LABEL_CODE = 2
"""Stands for the image-label folders where SPLIT_CODES stands for the splits."""

FORMAT = 1
"""Counts changes after which the same arguments give other pictures or other truth."""
JPEG_QUALITY = 88
PICTURES_A_TASK = 16
"""How many pictures a worker process is handed at a time."""
MARK = "world.json"


@dataclass(frozen=True, kw_only=True)
class WorldSummary:
    """What a world holds."""

    train_images: int
    """Pictures in train2017."""
    val_images: int
    """Pictures in val2017."""
    label_images: int
    """Pictures in image_labels."""
    train_boxes: dict[str, int]
    """Annotations of train2017 for each role; crowds count as one."""
    val_boxes: dict[str, int]
    """Annotations of val2017 for each role; crowds count as one."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One picture to write."""

    path: Path
    seeds: tuple[int, ...]
    label_noun: int | None


def write_world(
    out: Path,
    *,
    train: int,
    val: int,
    seed: int,
    image_labels_per_class: int = 20,
    on_image: Callable[[], None] | None = None,
    workers: int = 0,
) -> WorldSummary:
    """Write a world of `train` + `val` pictures and the image-label folders to `out`.

    `on_image` is called once for each picture, also for those already there. `workers` > 0 paints in that many
    processes; the bytes are the same. Raises ConfigError where `out` holds anything but this very world.
    """
    arguments = {
        "format": FORMAT,
        "nouns": hashlib.sha256(repr(NOUNS).encode()).hexdigest()[:16],
        "train": train,
        "val": val,
        "seed": seed,
        "image_labels_per_class": image_labels_per_class,
    }
    if min(train, val, seed, image_labels_per_class) < 0:
        raise ConfigError("--train, --val, --seed and --image-labels must not be negative")
    jobs = {
        "train": _split_jobs(out, "train", train, seed),
        "val": _split_jobs(out, "val", val, seed),
        "labels": _label_jobs(out, image_labels_per_class, seed),
    }
    mark = _claim(out, arguments)
    if "summary" in mark and all(path.exists() for path in _files(out, jobs)):
        for _ in range(sum(map(len, jobs.values()))):
            if on_image is not None:
                on_image()
        return WorldSummary(**mark["summary"])

    painted = _paint_all([job for some in jobs.values() for job in some], workers)
    records: dict[str, list[dict[str, Any]]] = {name: [] for name in jobs}
    for name, some in jobs.items():
        for record in islice(painted, len(some)):
            records[name].append(record)
            if on_image is not None:
                on_image()
    return _write_annotations(out, arguments, records)


def _claim(out: Path, arguments: dict[str, Any]) -> dict[str, Any]:
    """Mark the folder as this world's; returns the mark. Refuses a folder that holds something else."""
    path = out / MARK
    if path.exists():
        try:
            mark = dict(json.loads(path.read_text()))
        except (ValueError, TypeError):
            raise ConfigError(f"{path} is not readable: delete {out} or choose another --out") from None
        differing = [key for key, value in arguments.items() if mark.get(key) != value]
        if differing:
            was = ", ".join(f"{key} {mark.get(key)}" for key in differing)
            raise ConfigError(f"{out} holds another world ({was}): choose another --out or delete it")
        return mark
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not a world: choose another --out or an empty folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
        _write_json(path, arguments)
    except OSError as error:
        raise ConfigError(f"cannot write to {out} ({error.strerror}): choose another --out") from None
    return arguments


def _split_jobs(out: Path, split: Split, count: int, seed: int) -> list[_Job]:
    folder = out / f"{split}2017"
    return [
        _Job(path=folder / f"{index + 1:012d}.jpg", seeds=(seed, SPLIT_CODES[split], index), label_noun=None)
        for index in range(count)
    ]


def _label_jobs(out: Path, count: int, seed: int) -> list[_Job]:
    return [
        _Job(
            path=out / "image_labels" / noun.name.replace(" ", "_") / f"{index + 1:04d}.jpg",
            seeds=(seed, LABEL_CODE, noun_index, index),
            label_noun=noun_index,
        )
        for noun_index, noun in enumerate(NOUNS)
        if noun.role != "unused"
        for index in range(count)
    ]


def _files(out: Path, jobs: dict[str, list[_Job]]) -> Iterator[Path]:
    """Every file of a complete world but the mark."""
    for some in jobs.values():
        yield from (job.path for job in some)
    yield from (
        out / "annotations" / f"{kind}_{split}2017.json" for kind in ("instances", "captions") for split in SPLITS
    )
    yield out / "annotations" / "image_labels.json"


def _paint_all(jobs: Sequence[_Job], workers: int) -> Iterator[dict[str, Any]]:
    """Write the pictures that are missing; yields the truth about each, in order."""
    for folder in {job.path.parent for job in jobs}:
        folder.mkdir(parents=True, exist_ok=True)
    if workers < 1 or len(jobs) <= PICTURES_A_TASK:
        yield from map(_paint, jobs)
        return
    # Spawned, not forked: the caller may hold threads. Ctrl-C is the parent's to handle.
    pool = ProcessPoolExecutor(
        workers,
        mp_context=multiprocessing.get_context("spawn"),
        initializer=partial(signal.signal, signal.SIGINT, signal.SIG_IGN),
    )
    try:
        yield from pool.map(_paint, jobs, chunksize=PICTURES_A_TASK)
    finally:
        pool.shutdown(cancel_futures=True)


def _paint(job: _Job) -> dict[str, Any]:
    """Write one picture unless it is there; returns what the JSON files say about it."""
    rng = np.random.default_rng(job.seeds)
    scene = compose_scene(rng) if job.label_noun is None else compose_label_scene(rng, job.label_noun)
    record = _truth(rng, scene, job)
    if not job.path.exists():
        aside = job.path.with_suffix(".part")
        Image.fromarray(render_scene(scene)).save(aside, format="JPEG", quality=JPEG_QUALITY)
        aside.replace(job.path)
    return record


def _truth(rng: np.random.Generator, scene: Scene, job: _Job) -> dict[str, Any]:
    size = {"width": scene.width, "height": scene.height}
    if job.label_noun is not None:
        label = {"pos_category_ids": [job.label_noun + 1]}
        return {"image": {"file_name": f"{job.path.parent.name}/{job.path.name}", **size, **label}}
    return {
        "image": {"file_name": job.path.name, **size},
        "annotations": [
            {
                "category_id": instance.noun_index + 1,
                "iscrowd": int(instance.is_crowd),
                **instance.geometry,
                "phrase": phrase_of(rng, instance),
            }
            for instance in scene.instances
        ],
        "captions": captions_of(rng, scene),
    }


def _write_annotations(out: Path, arguments: dict[str, Any], records: dict[str, list[dict[str, Any]]]) -> WorldSummary:
    folder = out / "annotations"
    folder.mkdir(exist_ok=True)
    boxes: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        images = _numbered(record["image"] for record in records[split])
        instances = _numbered(
            {"image_id": image["id"], **annotation}
            for image, record in zip(images, records[split], strict=True)
            for annotation in record["annotations"]
        )
        captions = _numbered(
            {"image_id": image["id"], "caption": caption}
            for image, record in zip(images, records[split], strict=True)
            for caption in record["captions"]
        )
        head = {"info": _info(arguments, f"{split}2017"), "licenses": _LICENSES, "images": images}
        _write_json(folder / f"captions_{split}2017.json", head | {"annotations": captions})
        _write_json(
            folder / f"instances_{split}2017.json", head | {"annotations": instances, "categories": categories()}
        )
        boxes[split] = _by_role(annotation["category_id"] for annotation in instances)
    labelled = _numbered(record["image"] for record in records["labels"])
    head = {"info": _info(arguments, "image labels"), "licenses": _LICENSES, "images": labelled}
    _write_json(folder / "image_labels.json", head | {"annotations": [], "categories": categories()})
    summary = WorldSummary(
        train_images=len(records["train"]),
        val_images=len(records["val"]),
        label_images=len(labelled),
        train_boxes=boxes["train"],
        val_boxes=boxes["val"],
    )
    _write_json(out / MARK, arguments | {"summary": asdict(summary)})
    return summary


_LICENSES = [{"id": 1, "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0"}]


def _info(arguments: dict[str, Any], part: str) -> dict[str, Any]:
    return {"description": f"OVBridge's built-in world, {part}", "version": str(FORMAT), "seed": arguments["seed"]}


def categories() -> list[dict[str, Any]]:
    """The nouns as COCO categories; the id is the position in NOUNS + 1."""
    return [
        {
            "id": index + 1,
            "name": noun.name,
            "supercategory": noun.supercategory,
            "role": noun.role,
            "synonyms": list(noun.synonyms),
        }
        for index, noun in enumerate(NOUNS)
    ]


def _numbered(records: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"id": index + 1, **record} for index, record in enumerate(records)]


def _by_role(category_ids: Iterable[int]) -> dict[str, int]:
    counts = {"base": 0, "novel": 0, "unused": 0}
    for category_id in category_ids:
        counts[NOUNS[category_id - 1].role] += 1
    return counts


def _write_json(path: Path, content: dict[str, Any]) -> None:
    aside = path.with_suffix(".json.part")
    aside.write_text(json.dumps(content, separators=(",", ":")))
    aside.replace(path)
