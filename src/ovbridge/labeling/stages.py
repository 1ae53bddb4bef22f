"""The stages between a list of images and their labels, the same on every engine.

decode (threads, ahead of need) → batches of equally large images → teacher. Every stage is bounded, so memory does
not grow with the number of images. Batches never reach over the border of a unit of `RunSettings.unit_images`
images, so whoever works on the units, in whatever order, computes the same numbers.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovbridge.errors import ConfigError, OVBridgeError, TeacherError
from ovbridge.label_store import LabelledImage, Table
from ovbridge.labeling.labellers import Labeller, Labels
from ovbridge.teachers.protocol import UnknownImageError

ReadImage = Callable[[Path], np.ndarray]
"""Path → [H, W, 3] uint8 RGB; raises DataError for a file that is no image."""

DECODED_BYTES = 256 << 20
"""Decoded images that wait for the teacher take about this much memory at most, twice."""

HOPELESS_TEACHER_FAILURES = 10
"""So many images in a row on which the teacher raised: it is broken, not the images."""

_TEACHER_CAUSE = "teacher: "


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a labelling run is carried out; nothing here changes a label beyond rounding."""

    batch_images: int = 8
    """Images of equal size that go through the teacher together."""
    unit_images: int = 128
    """Consecutive images that are worked on together: what one machine takes up at a time."""
    decode_threads: int = 2
    """Threads that read images ahead."""
    commit_images: int = 256
    """A commit at the latest after this many images ..."""
    commit_seconds: float = 30.0
    """... or after this long: what a kill can cost."""
    max_failed: float = 0.05
    """The run fails, with all labels kept, if a larger share of its images failed."""
    shard: tuple[int, int] = (0, 1)
    """(i, n): take only the i-th of n parts of the images, so that n processes or machines share the work."""
    retry_failed: bool = False
    """Take up again images that failed in an earlier run."""

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_failed <= 1.0:
            raise ConfigError(f"--max-failed {self.max_failed} is no share of the images: give 0 to 1, such as 0.05")


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of one image."""

    image_key: str
    labels: Labels | None
    """None where the image failed."""
    cause: str | None = None
    """Why it failed: one line without the path, so that equal causes can be counted."""

    @property
    def failed_in_teacher(self) -> bool:
        """Whether the image could be read and the teacher raised."""
        return self.cause is not None and self.cause.startswith(_TEACHER_CAUSE)

    def row(self, table: Table, asked: tuple[str, ...] | None) -> LabelledImage:
        """The entry of this image in `table`; `asked` are the names that its tags were asked for."""
        labels = None if self.labels is None else self.labels[table]
        return LabelledImage(image_key=self.image_key, labels=labels, cause=self.cause, asked=asked)


@dataclass(frozen=True)
class _Decoded:
    image_key: str
    pixels: np.ndarray | None
    cause: str | None = None


def label_in_order(
    image_keys: Sequence[str], root: Path, labeller: Labeller, read_image: ReadImage, settings: RunSettings
) -> Iterator[Outcome]:
    """The outcome of every image, batch by batch; reads at most a few batches ahead of the consumer."""
    decoded = _decode_ahead(image_keys, root, read_image, settings)
    for batch in _batches(decoded, settings.batch_images, settings.unit_images):
        yield from _label_batch(batch, labeller)


def stop_if_hopeless(outcomes: Iterable[Outcome]) -> Iterator[Outcome]:
    """Pass outcomes on; raise TeacherError once the teacher has raised on many images in a row."""
    in_a_row = 0
    for outcome in outcomes:
        in_a_row = in_a_row + 1 if outcome.failed_in_teacher else 0
        if in_a_row >= HOPELESS_TEACHER_FAILURES:
            raise TeacherError(
                f"the teacher failed on {in_a_row} images in a row, last on {outcome.image_key} ({outcome.cause}): "
                "mend it, then run the same command again"
            )
        yield outcome


def _decode_ahead(
    image_keys: Sequence[str], root: Path, read_image: ReadImage, settings: RunSettings
) -> Iterator[_Decoded]:
    """Decoded images in order, at most a few batches ahead of the consumer."""

    def decode(key: str) -> _Decoded:
        try:
            return _Decoded(key, read_image(root / key))
        except Exception as error:
            return _Decoded(key, None, _cause(error, root / key))

    largest = 1
    waiting: deque[Future[_Decoded]] = deque()
    with ThreadPoolExecutor(settings.decode_threads, thread_name_prefix="decode") as pool:
        try:
            for key in image_keys:
                waiting.append(pool.submit(decode, key))
                # A few batches ahead, fewer where the images are huge.
                while len(waiting) > min(3 * settings.batch_images, max(DECODED_BYTES // largest, 1)):
                    decoded = waiting.popleft().result()
                    largest = max(largest, decoded.pixels.nbytes if decoded.pixels is not None else 1)
                    yield decoded
            while waiting:
                yield waiting.popleft().result()
        finally:
            for future in waiting:
                future.cancel()


def _batches(images: Iterator[_Decoded], size: int, unit: int) -> Iterator[list[_Decoded]]:
    """Batches of equally large images; what could not be read goes through alone and at once.

    At most four batches' worth of images wait for company, fewer where they are huge; then the largest
    group goes as it is, and at the end of each unit all of them.
    """
    groups: dict[tuple[int, ...], list[_Decoded]] = {}
    waiting = waiting_bytes = 0
    for count, image in enumerate(images, 1):
        if image.pixels is None:
            yield [image]
        else:
            group = groups.setdefault(image.pixels.shape, [])
            group.append(image)
            waiting, waiting_bytes = waiting + 1, waiting_bytes + image.pixels.nbytes
            if len(group) == size or waiting >= 4 * size or waiting_bytes >= DECODED_BYTES:
                shape = max(groups, key=lambda shape: len(groups[shape]))
                batch = groups.pop(shape)
                waiting, waiting_bytes = waiting - len(batch), waiting_bytes - len(batch) * math.prod(shape)
                yield batch
        if count % unit == 0:
            yield from groups.values()
            groups, waiting, waiting_bytes = {}, 0, 0
    yield from groups.values()


def _label_batch(batch: list[_Decoded], labeller: Labeller) -> Iterator[Outcome]:
    """Outcomes of a batch; where the teacher raises, its images are tried one by one."""
    if batch[0].pixels is None:
        yield Outcome(image_key=batch[0].image_key, labels=None, cause=batch[0].cause or "unreadable")
        return
    try:
        found = labeller.label([d.image_key for d in batch], [d.pixels for d in batch if d.pixels is not None])
    except OVBridgeError:
        raise
    except Exception as error:
        if len(batch) > 1:
            for image in batch:
                yield from _label_batch([image], labeller)
        else:
            known = isinstance(error, UnknownImageError)
            cause = str(error) if known else _TEACHER_CAUSE + _cause(error, None)
            yield Outcome(image_key=batch[0].image_key, labels=None, cause=cause)
        return
    for decoded, labels in zip(batch, found, strict=True):
        yield Outcome(image_key=decoded.image_key, labels=labels)


def _cause(error: Exception, path: Path | None) -> str:
    """One line without the path, so that equal causes can be counted."""
    text = str(error) if isinstance(error, OVBridgeError) else f"{type(error).__name__}: {error}"
    if path is not None:
        text = text.replace(str(path), "FILE")
    return " ".join(text.split())
