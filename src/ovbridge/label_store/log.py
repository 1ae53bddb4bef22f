"""One line a commit, so that somebody else can see how fast a labelling run goes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

WINDOW = 20
"""The rate is taken over this many last commits of the last run."""

NOTED = ("process", "images", "seconds", "of")
"""Numbers of a line that are read again."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How the last run went."""

    images_per_second: float
    of: int
    """Images that the table holds once it is through with all of its shards."""


def append_log(path: Path, *, images: int, seconds: float, of: int) -> None:
    """Note a commit of `images` that took `seconds`, in a run that makes it `of` images in all."""
    line = {
        "time": round(time.time(), 3),
        "process": os.getpid(),
        "images": images,
        "seconds": round(seconds, 3),
        "of": of,
    }
    with open(path, "a") as file:
        file.write(json.dumps(line) + "\n")


def read_rate(path: Path) -> Rate:
    """Images per second over the last commits; zeros where nothing was noted yet."""
    entries = _entries(path)
    if not entries:
        return Rate(images_per_second=0.0, of=0)
    last = [e for e in entries if e["process"] == entries[-1]["process"]][-WINDOW:]
    seconds = sum(e["seconds"] for e in last)
    rate = sum(e["images"] for e in last) / seconds if seconds else 0.0
    return Rate(images_per_second=round(rate, 2), of=int(entries[-1]["of"]))


def _entries(path: Path) -> list[dict[str, float]]:
    """The lines that can be read: a kill cuts one short, and a damaged log costs only the rate."""
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError:
        return []
    entries = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if isinstance(entry, dict) and all(isinstance(entry.get(key), int | float) for key in NOTED):
            entries.append({key: entry[key] for key in NOTED})
    return entries
