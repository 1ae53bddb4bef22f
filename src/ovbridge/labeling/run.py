"""The labelling run: images in, committed labels out, resumable after any kill.

decode (threads, ahead of need) → teacher (this thread, batches of equally large images) → writer (a thread).
Every stage is bounded, so memory does not grow with the number of images.
"""

from __future__ import annotations

import math
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ovbridge.console import Ticker
from ovbridge.errors import DataError, OVBridgeError, TeacherError
from ovbridge.label_store import ImageSet, LabelledImage, LabelStore
from ovbridge.labeling.labellers import Labeller
from ovbridge.labeling.writer import BackgroundWriter

ReadImage = Callable[[Path], np.ndarray]
"""Path → [H, W, 3] uint8 RGB; raises DataError for a file that is no image."""

DECODED_BYTES = 256 << 20
"""Decoded images that wait for the teacher take about this much memory at most, twice."""

HOPELESS_TEACHER_FAILURES = 10
"""So many images in a row on which the teacher raised: it is broken, not the images."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """How a labelling run is carried out; nothing here changes a label."""

    batch_images: int = 8
    """Images of equal size that go through the teacher together."""
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


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended."""

    images: int
    """Images that this run was about."""
    done_before: int
    """Of these, already in the store when it started."""
    labelled: int
    """Labelled now."""
    failures: dict[str, str]
    """Image key → cause, of all `images`, earlier runs included."""


@dataclass(frozen=True)
class _Decoded:
    image_key: str
    pixels: np.ndarray | None
    cause: str | None = None


def in_shard(image_key: str, shard: tuple[int, int]) -> bool:
    """Whether a key belongs to part i of n; the same on every machine."""
    index, count = shard
    return zlib.crc32(image_key.encode()) % count == index


def label_images(
    store_path: str | Path,
    image_root: Path,
    image_keys: Sequence[str],
    labeller: Labeller,
    *,
    read_image: ReadImage,
    settings: RunSettings | None = None,
) -> RunSummary:
    """Label the images that the store does not have yet.

    Args:
        store_path: the store; made if need be. Its manifest must name the same teacher and rules.
        image_root: folder of the images.
        image_keys: paths under `image_root`, with forward slashes.
        labeller: what to do with a batch.
        read_image: the decoder.
        settings: how to run.

    Raises:
        StoreError: the store was made otherwise, or the disk refuses.
        TeacherError: the teacher fails on one image after another.
        DataError: more than `settings.max_failed` of the images failed; everything else is kept.
    """
    settings = settings or RunSettings()
    keys = [key for key in dict.fromkeys(image_keys) if in_shard(key, settings.shard)]
    manifest = labeller.manifest.with_image_set(ImageSet.of(image_root, image_keys))
    table = manifest.table
    store = LabelStore.create_or_open(store_path, manifest)
    if settings.retry_failed:
        store.discard_failures(table)
    done = store.done_keys(table)
    todo = [key for key in keys if key not in done]
    labelled = 0
    with Ticker(f"label {table}", len(keys), done=len(keys) - len(todo)) as tick:
        writer = BackgroundWriter(
            store,
            table,
            commit_images=settings.commit_images,
            commit_seconds=settings.commit_seconds,
            of=len(keys),
        )
        with writer as put:
            for outcome in _label(todo, image_root, labeller, read_image, settings):
                put(outcome)
                labelled += outcome.status != "failed"
                tick()
    store.compact(table)
    wanted = set(keys)
    failures = {key: cause for key, cause in store.failures(table).items() if key in wanted}
    _refuse_too_many_failures(failures, len(keys), settings.max_failed, store.path)
    return RunSummary(images=len(keys), done_before=len(keys) - len(todo), labelled=labelled, failures=failures)


def _label(
    image_keys: Sequence[str], root: Path, labeller: Labeller, read_image: ReadImage, settings: RunSettings
) -> Iterator[LabelledImage]:
    teacher_failures = 0
    for batch in _batches(_decode_ahead(image_keys, root, read_image, settings), settings.batch_images):
        for outcome, error in _label_batch(batch, labeller):
            teacher_failures = teacher_failures + 1 if error else 0
            if error and teacher_failures >= HOPELESS_TEACHER_FAILURES:
                raise TeacherError(
                    f"the teacher failed on {teacher_failures} images in a row, last on {outcome.image_key} "
                    f"({outcome.cause}): mend it, then run the same command again"
                ) from error
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


def _batches(images: Iterator[_Decoded], size: int) -> Iterator[list[_Decoded]]:
    """Batches of equally large images; what could not be read goes through alone and at once.

    At most four batches' worth of images wait for company, fewer where they are huge; then the largest
    group goes as it is.
    """
    groups: dict[tuple[int, ...], list[_Decoded]] = {}
    waiting = waiting_bytes = 0
    for image in images:
        if image.pixels is None:
            yield [image]
            continue
        group = groups.setdefault(image.pixels.shape, [])
        group.append(image)
        waiting, waiting_bytes = waiting + 1, waiting_bytes + image.pixels.nbytes
        if len(group) == size or waiting >= 4 * size or waiting_bytes >= DECODED_BYTES:
            shape = max(groups, key=lambda shape: len(groups[shape]))
            batch = groups.pop(shape)
            waiting, waiting_bytes = waiting - len(batch), waiting_bytes - len(batch) * math.prod(shape)
            yield batch
    yield from groups.values()


def _label_batch(batch: list[_Decoded], labeller: Labeller) -> Iterator[tuple[LabelledImage, Exception | None]]:
    """Outcomes of a batch; where the teacher raises, its images are tried one by one."""
    if batch[0].pixels is None:
        yield LabelledImage(image_key=batch[0].image_key, labels=None, cause=batch[0].cause or "unreadable"), None
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
            cause = f"teacher: {_cause(error, None)}"
            yield LabelledImage(image_key=batch[0].image_key, labels=None, cause=cause), error
        return
    for decoded, labels in zip(batch, found, strict=True):
        yield LabelledImage(image_key=decoded.image_key, labels=labels), None


def _cause(error: Exception, path: Path | None) -> str:
    """One line without the path, so that equal causes can be counted."""
    text = str(error) if isinstance(error, OVBridgeError) else f"{type(error).__name__}: {error}"
    if path is not None:
        text = text.replace(str(path), "FILE")
    return " ".join(text.split())


def _refuse_too_many_failures(failures: dict[str, str], images: int, limit: float, store: Path) -> None:
    if failures and len(failures) > limit * images:
        key, cause = next(iter(failures.items()))
        raise DataError(
            f"{len(failures)} of {images} images failed (limit {limit:.0%}), for instance {key}: {cause}; the other "
            f"labels are kept: see 'ovbridge label status {store}', mend the images and add --retry-failed, "
            "or raise --max-failed"
        )
