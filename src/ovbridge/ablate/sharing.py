"""Several processes on one ablation folder: each run is done by one of them, the others take what is left.

The system frees the lock of a killed process, so nothing has to be tidied up after one.
"""

from __future__ import annotations

import fcntl
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

T = TypeVar("T")


@contextmanager
def taken(file: Path) -> Iterator[bool]:
    """Hold the lock `file` unless another process does; gives whether it is ours."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with open(file, "a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        yield True


@contextmanager
def own_file(folder: Path, stem: str, suffix: str) -> Iterator[Path]:
    """The first of STEM, STEM_2, STEM_3, … that no other process has, for as long as the context is open."""
    for k in itertools.count(1):
        name = stem if k == 1 else f"{stem}_{k}"
        with taken(folder / f"{name}.lock") as ours:
            if ours:
                yield folder / f"{name}{suffix}"
                return


def share_out(
    tasks: Sequence[T], is_ready: Callable[[T], bool], do: Callable[[T], bool], wait: Callable[[], None]
) -> None:
    """Do every task, in their order where possible.

    `do` returns False for a task that another process is at; it is asked for again, after `wait` when nothing else
    could be done. A task waits until `is_ready`, which some other task's `do` makes true.
    """
    left = list(tasks)
    while left:
        task = next((task for task in left if is_ready(task) and do(task)), None)
        if task is None:
            wait()
        else:
            left.remove(task)
