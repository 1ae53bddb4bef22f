"""Draws the next batches in a thread while the current one is computed, and remembers where in the data each ends."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from ovbridge.errors import DataError
from ovbridge.structures import TrainingImage

if TYPE_CHECKING:
    from ovbridge.training.share import BatchShare


@dataclass(frozen=True, kw_only=True)
class Batch:
    """The images of one step, all of one kind."""

    kind: Literal["det", "cls"]
    """det: human boxes. cls: image labels with their pseudo boxes."""
    images: list[TrainingImage]
    share: BatchShare | None = None
    """Which part of the step's batch these images are; None where they are all of it."""


class BatchSource(Protocol):
    """An endless stream of batches that can go on from a remembered position."""

    def __iter__(self) -> Iterator[tuple[Literal["det", "cls"], list[TrainingImage]]]:
        """(kind, images) of the batches from the current position on."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """The position after the last batch drawn; JSON-ready."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a position that `state_dict` gave."""
        ...

    def upcoming(self) -> str:
        """The images that the next batch is made of, for people."""
        ...


class Prefetcher:
    """Iterates over (batch, position after it) with up to `depth` batches ready; use as a context manager.

    JPEG decoding and resizing release Python's lock, so a thread overlaps with the computation. An error in the
    source is raised at the batch where it happened. A source that gives nothing for `timeout` seconds is named by a
    DataError.
    """

    def __init__(self, source: BatchSource, *, depth: int = 2, timeout: float | None = None) -> None:
        self._source, self._timeout = source, timeout
        self._ready: queue.Queue[tuple[Batch, dict[str, Any]] | BaseException] = queue.Queue(maxsize=max(depth, 1))
        self._stop = threading.Event()
        self._stalled = False
        self._thread = threading.Thread(target=self._fill, name="prefetch", daemon=True)

    def __enter__(self) -> Prefetcher:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        # A source that stands still would not hear of it.
        self._thread.join(timeout=0.1 if self._stalled else 30)

    def __iter__(self) -> Iterator[tuple[Batch, dict[str, Any]]]:
        return self

    def __next__(self) -> tuple[Batch, dict[str, Any]]:
        try:
            item = self._ready.get(timeout=self._timeout)
        except queue.Empty:
            self._stalled = True
            raise DataError(
                f"no batch for {self._timeout:.0f} s: the loader stands still at {self._source.upcoming()}; "
                "check that disk, or raise loop.data_timeout"
            ) from None
        if isinstance(item, BaseException):
            raise item
        return item

    def _fill(self) -> None:
        # Of this thread alone. A second OpenMP team beside the training thread's makes libgomp count more threads than
        # cores and put them all to sleep between operators: measured 1.5 times slower steps on 2 cores.
        torch.set_num_threads(1)
        try:
            for kind, images in self._source:
                self._put((Batch(kind=kind, images=images), deepcopy(self._source.state_dict())))
                if self._stop.is_set():
                    return
            self._put(StopIteration())
        except BaseException as error:
            self._put(error)

    def _put(self, item: tuple[Batch, dict[str, Any]] | BaseException) -> None:
        while not self._stop.is_set():
            try:
                self._ready.put(item, timeout=0.1)
                return
            except queue.Full:
                continue
