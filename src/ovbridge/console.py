"""What a person sees while waiting: progress bars on standard error, plain lines where there is no terminal.

Results go to standard output, everything else to standard error, so `--json` output can be piped.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

T = TypeVar("T")

# Most of what is printed are the user's own names and paths, in which brackets and colons are no markup.
stderr = Console(stderr=True, highlight=False, markup=False, emoji=False)
stdout = Console(highlight=False, markup=False, emoji=False)

PLAIN_INTERVAL_SECONDS = 15.0
"""Without a terminal (CI, a log file) one line is printed this often instead of a moving bar."""


class RateColumn(ProgressColumn):
    """Steps per second."""

    def render(self, task: Task) -> Text:
        """The rate as text."""
        speed = task.finished_speed or task.speed
        return Text(f"{speed:.1f}/s" if speed else "", style="cyan")


def progress_bar() -> Progress:
    """A bar with count, rate, time spent and time left."""
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(bar_width=28),
        MofNCompleteColumn(),
        RateColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", style="dim", markup=False),
        console=stderr,
        disable=not stderr.is_terminal,
    )


class Ticker:
    """Progress over a known number of steps: `with Ticker("train", 400) as tick: tick(note="loss 1.2")`."""

    def __init__(self, description: str, total: int, done: int = 0) -> None:
        self._description, self._total, self._done = description, total, done
        self._started = self._last_line = time.monotonic()
        self._done_before = done
        self._progress = progress_bar()
        self._task = self._progress.add_task(description, total=total, completed=done, note="")

    def __enter__(self) -> Ticker:
        if stderr.is_terminal:
            self._progress.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        # A bar that never started would write an empty line (rich before 15).
        if stderr.is_terminal:
            self._progress.stop()

    def __call__(self, steps: int = 1, *, note: str | None = None) -> None:
        """Advance by `steps`; `note` replaces the text at the end of the bar."""
        self._done += steps
        if note is None:
            self._progress.update(self._task, advance=steps)
        else:
            self._progress.update(self._task, advance=steps, note=note)
        now = time.monotonic()
        if not stderr.is_terminal and now - self._last_line > PLAIN_INTERVAL_SECONDS:
            self._last_line = now
            rate = (self._done - self._done_before) / max(now - self._started, 1e-9)
            left = (self._total - self._done) / max(rate, 1e-9)
            count = f"{self._done}/{self._total}"
            stderr.print(f"{self._description}: {count}, {rate:.1f}/s, {left:.0f} s left {note or ''}".rstrip())


def track(items: Iterable[T], description: str, total: int) -> Iterator[T]:
    """Yield from `items` under a progress bar."""
    with Ticker(description, total) as tick:
        for item in items:
            yield item
            tick()
