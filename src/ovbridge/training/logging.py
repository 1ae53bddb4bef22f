"""The log of a run: one JSON line and one TensorBoard point every few steps.

A line: `{"step", "stage", "losses": {name: mean}, "loss", "learning_rate", "gradient_norm", "images_per_second",
"data_wait", "memory_mb", "skipped_steps", "seconds"}`; losses are means over the steps since the line before.
Steps at which the detector was evaluated have "evaluation": {name: value} as well.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from ovbridge.training.trackers import Tracker

_GROUPS = ("losses", "evaluation")


@dataclass(frozen=True, kw_only=True)
class Tally:
    """Sums over some steps of one process."""

    sums: dict[str, float]
    """Of each loss."""
    counts: dict[str, int]
    """Steps that had it."""
    images: int
    waited_seconds: float
    seconds: float

    def json(self) -> dict[str, Any]:
        """Means of each loss over the steps that had it, images a second, share of the time spent waiting for data."""
        return {
            "losses": {name: total / self.counts[name] for name, total in self.sums.items()},
            "images_per_second": round(self.images / self.seconds, 2),
            "data_wait": round(self.waited_seconds / self.seconds, 4),
        }


def over_processes(tallies: Sequence[Tally]) -> Tally:
    """What the processes did together: each loss is averaged over all of them, and absent counts as zero.

    Losses of a part of a batch are weighted such that this is the loss of the whole batch.
    """
    if len(tallies) == 1:
        return tallies[0]
    count = len(tallies)
    names = list(dict.fromkeys(name for tally in tallies for name in tally.sums))
    return Tally(
        sums={name: sum(tally.sums.get(name, 0.0) for tally in tallies) / count for name in names},
        counts={name: max(tally.counts.get(name, 0) for tally in tallies) for name in names},
        images=sum(tally.images for tally in tallies),
        waited_seconds=sum(tally.waited_seconds for tally in tallies) / count,
        seconds=max(tally.seconds for tally in tallies),
    )


class Window:
    """What happened in this process since the last line of the log."""

    def __init__(self) -> None:
        self._sums: defaultdict[str, float] = defaultdict(float)
        self._counts: defaultdict[str, int] = defaultdict(int)
        self._images = 0
        self._waited = 0.0
        self._began = time.perf_counter()

    def add(self, losses: dict[str, float], *, images: int, waited_seconds: float) -> None:
        """One step: its weighted losses, its images, and how long it waited for them."""
        for name, value in losses.items():
            self._sums[name] += value
            self._counts[name] += 1
        self._images += images
        self._waited += waited_seconds

    def tally(self) -> Tally:
        """The sums so far."""
        return Tally(
            sums=dict(self._sums),
            counts=dict(self._counts),
            images=self._images,
            waited_seconds=self._waited,
            seconds=max(time.perf_counter() - self._began, 1e-9),
        )


class RunLog:
    """`log.jsonl` and `tensorboard/` of one run folder, and a tracker if one is given; use as a context manager."""

    def __init__(self, folder: Path, *, stage: str, start_step: int = 0, tracker: Tracker | None = None) -> None:
        from torch.utils.tensorboard import SummaryWriter  # here: it takes a second to import

        self._stage, self._tracker = stage, tracker
        self._path = folder / "log.jsonl"
        forget_after(self._path, start_step)
        self._file = self._path.open("a", encoding="utf-8")
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=start_step or None)
        self._began = time.perf_counter()

    def write(self, step: int, record: dict[str, Any]) -> None:
        """One line for `step` (steps done)."""
        line = {
            "step": step,
            "stage": self._stage,
            **record,
            "memory_mb": peak_memory_mb(),
            "seconds": round(time.perf_counter() - self._began, 2),
        }
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        values = {f"{part}/{name}": value for part in _GROUPS for name, value in record.get(part, {}).items()}
        values |= {f"run/{name}": v for name, v in line.items() if isinstance(v, (int, float)) and name != "step"}
        for name, value in values.items():
            self._board.add_scalar(name, value, step)
        if self._tracker is not None:
            self._tracker.log(step, values)

    def __enter__(self) -> RunLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._board.close()
        if self._tracker is not None:
            self._tracker.close()


def forget_after(path: Path, step: int) -> None:
    """Drop the lines of `path` beyond `step`, and a line that a kill cut short: those steps are done again."""
    if not path.exists():
        return
    kept = [line for line in read_log(path) if line["step"] <= step]
    aside = path.with_name(path.name + ".part")
    aside.write_text("".join(json.dumps(line) + "\n" for line in kept), encoding="utf-8")
    aside.replace(path)


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a `log.jsonl`, oldest first, without those that a kill cut short or something damaged."""
    lines = [_read_line(text) for text in path.read_bytes().splitlines()]
    return [line for line in lines if line is not None]


def _read_line(text: bytes) -> dict[str, Any] | None:
    try:
        line = json.loads(text)
    except ValueError:
        return None
    return line if isinstance(line, dict) and isinstance(line.get("step"), int) else None


def peak_memory_mb() -> int:
    """Largest memory so far in MB: of the GPU where one is used, else of this process."""
    if torch.cuda.is_available():
        return round(torch.cuda.max_memory_allocated() / 2**20)
    # ru_maxrss is in kB on Linux, in bytes on macOS.
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit)
