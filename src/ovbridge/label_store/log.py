"""One line a commit, so that somebody else can see how fast a labelling run goes."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path

WINDOW = 20
"""The rate is taken over this many last commits of the last run."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """How the last run went."""

    images_per_second: float
    of: int
    """Images that it aimed at, those done before included."""


def append_log(path: Path, *, images: int, seconds: float, of: int) -> None:
    """Note a commit of `images` that took `seconds`, in a run over `of` images."""
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
    entries = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            entries.append(json.loads(line))
        except ValueError:  # a line cut short by a kill
            continue
    if not entries:
        return Rate(images_per_second=0.0, of=0)
    last = [e for e in entries if e["process"] == entries[-1]["process"]][-WINDOW:]
    seconds = sum(e["seconds"] for e in last)
    rate = sum(e["images"] for e in last) / seconds if seconds else 0.0
    return Rate(images_per_second=round(rate, 2), of=int(entries[-1]["of"]))
