"""Commits labels from a thread of its own, so that the teacher never waits for the disk."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Mapping

from ovbridge.label_store import LabelStore, Table
from ovbridge.labeling.labellers import Labeller
from ovbridge.labeling.stages import Outcome

FRAGMENTS_BEFORE_COMPACTION = 256
"""A slow teacher commits few images at a time; merging now and then keeps opening the store fast."""


class BackgroundWriter:
    """`with BackgroundWriter(...) as put: put(outcome)`; on leaving, everything put has been committed.

    A failed commit is raised by the next `put` or on leaving. After an interrupt what was put is still
    committed: it was paid for.
    """

    def __init__(
        self,
        store: LabelStore,
        labeller: Labeller,
        *,
        commit_images: int,
        commit_seconds: float,
        of: Mapping[Table, int],
    ) -> None:
        """`labeller` says which tables the labels of an image go to; `of` images are expected in each table."""
        self._store, self._labeller, self._of = store, labeller, of
        self._commit_images, self._commit_seconds = commit_images, commit_seconds
        # Bounded: a disk slower than the teacher holds the teacher back instead of filling the memory.
        self._queue: queue.Queue[Outcome | None] = queue.Queue(maxsize=2 * commit_images)
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="label-writer", daemon=True)

    def __enter__(self) -> Callable[[Outcome], None]:
        self._thread.start()
        return self._put

    def __exit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self._queue.put(None)
        self._thread.join()
        if self._failure is not None and kind is None:
            raise self._failure

    def _put(self, outcome: Outcome) -> None:
        if self._failure is not None:
            raise self._failure
        self._queue.put(outcome)

    def _run(self) -> None:
        pending: list[Outcome] = []
        last_commit = time.monotonic()
        running = True
        while running:
            wait = max(self._commit_seconds - (time.monotonic() - last_commit), 0.01)
            try:
                item = self._queue.get(timeout=wait)
                if item is None:
                    running = False
                elif self._failure is None:
                    pending.append(item)
            except queue.Empty:
                pass
            now = time.monotonic()
            due = len(pending) >= self._commit_images or now - last_commit >= self._commit_seconds
            if pending and (due or not running):
                self._commit(pending, now - last_commit)
                pending = []
            if due:
                last_commit = now

    def _commit(self, pending: list[Outcome], seconds: float) -> None:
        try:
            for table, of in self._of.items():
                rows = [
                    outcome.row(table, self._labeller.asked_of(outcome.image_key) if table == "tags" else None)
                    for outcome in pending
                    if table in self._labeller.tables_of(outcome.image_key)
                ]
                if rows:
                    self._store.append(table, rows, seconds=seconds, of=of)
                    self._store.compact(table, at_fragments=FRAGMENTS_BEFORE_COMPACTION)
        except BaseException as error:
            self._failure = error
