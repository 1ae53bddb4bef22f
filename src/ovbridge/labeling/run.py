"""The labelling run: images in, committed labels out, resumable after any kill.

An engine turns image keys into outcomes (`stages` here, `ray_engine` on several machines); a writer of its own
commits them. Only this process writes to the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ovbridge.console import Ticker, stderr
from ovbridge.errors import DataError
from ovbridge.label_store import ImageSet, LabelStore, Table
from ovbridge.labeling.labellers import Labeller
from ovbridge.labeling.same_pictures import check_same_pictures
from ovbridge.labeling.stages import Outcome, ReadImage, RunSettings, label_in_order, stop_if_hopeless
from ovbridge.labeling.writer import BackgroundWriter

__all__ = ["Engine", "RunSettings", "RunSummary", "in_shard", "label_images"]

Engine = Callable[[Sequence[str]], Iterator[Outcome]]
"""Image keys → the outcome of each, in any order; nothing is lost if the consumer stops half-way."""


@dataclass(frozen=True, kw_only=True)
class RunSummary:
    """How a run ended."""

    images: int
    """Images that this run was about."""
    done_before: int
    """Of these, already in the store when it started."""
    labelled: int
    """Labelled now."""
    replaced: int = 0
    """Of those taken up now, in the store before for other names than they have now."""
    failures: dict[str, str]
    """Image key → cause, of all `images`, earlier runs included."""


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
    engine: Engine | None = None,
) -> RunSummary:
    """Label the images that the store does not have yet, or whose names have changed since.

    Args:
        store_path: the store; made if need be. Its manifests must name the same teacher and rules.
        image_root: folder of the images.
        image_keys: paths under `image_root`, with forward slashes.
        labeller: what to do with a batch.
        read_image: the decoder.
        settings: how to run.
        engine: who does the work; by default this process.

    Raises:
        StoreError: the store was made otherwise or of other pictures of the same names, or the disk refuses.
        TeacherError: the teacher fails on one image after another.
        DataError: more than `settings.max_failed` of the images failed; everything else is kept.
    """
    settings = settings or RunSettings()
    keys = [key for key in dict.fromkeys(image_keys) if in_shard(key, settings.shard)]
    store = _open_tables(store_path, image_root, image_keys, labeller)
    tables: list[Table] = [manifest.table for manifest in labeller.manifests]
    if settings.retry_failed:
        for table in tables:
            store.discard_failures(table, keys)
    known = {table: store.done_keys(table) for table in tables}
    done = {table: store.done_keys(table, labeller.asked_of if table == "tags" else None) for table in tables}
    todo = [key for key in keys if any(key not in done[table] for table in labeller.tables_of(key))]
    replaced = sum(any(key in known[table] - done[table] for table in tables) for key in todo)
    if engine is None:

        def engine(todo: Sequence[str]) -> Iterator[Outcome]:
            return label_in_order(todo, image_root, labeller, read_image, settings)

    labelled = 0
    with Ticker(f"label {' and '.join(tables)}", len(keys), done=len(keys) - len(todo)) as tick:
        writer = BackgroundWriter(
            store,
            labeller,
            commit_images=settings.commit_images,
            commit_seconds=settings.commit_seconds,
            of={t: len(known[t].union(k for k in image_keys if t in labeller.tables_of(k))) for t in tables},
        )
        with writer as put:
            for outcome in stop_if_hopeless(engine(todo)):
                put(outcome)
                labelled += outcome.labels is not None
                tick()
    failures: dict[str, str] = {}
    for table in tables:
        store.compact(table)
        failures |= store.failures(table)
    failures = {key: failures[key] for key in keys if key in failures}
    _refuse_too_many_failures(failures, len(keys), settings.max_failed, store.path)
    return RunSummary(
        images=len(keys),
        done_before=len(keys) - len(todo),
        labelled=labelled,
        replaced=replaced,
        failures=failures,
    )


def _open_tables(path: str | Path, image_root: Path, image_keys: Sequence[str], labeller: Labeller) -> LabelStore:
    """The store with its images noted, once they are known not to be other pictures than it has labels of."""
    store = LabelStore.create_or_open(path, *labeller.manifests)
    notices = [
        check_same_pictures(store, image_root, image_keys, [m.table for m in labeller.manifests]),
        _of_unknown_names(store, [key for key in image_keys if "tags" in labeller.tables_of(key)]),
    ]
    image_set = ImageSet.of(image_root, image_keys)
    store = LabelStore.create_or_open(path, *(m.with_image_set(image_set) for m in labeller.manifests))
    for notice in filter(None, notices):
        stderr.print(f"note: {notice}", soft_wrap=True)
    return store


def _of_unknown_names(store: LabelStore, tagged_keys: Sequence[str]) -> str | None:
    """What to tell the user about images whose names may have changed without our knowing."""
    unknown = store.keys_of_unknown_names("tags").intersection(tagged_keys) if "tags" in store else ()
    if not unknown:
        return None
    return (
        f"{len(unknown)} of these images have tags of which {store.path} does not say for which names they were made; "
        "they are kept: if their names have changed since, use another --store"
    )


def _refuse_too_many_failures(failures: dict[str, str], images: int, limit: float, store: Path) -> None:
    if failures and len(failures) > limit * images:
        key, cause = next(iter(failures.items()))
        raise DataError(
            f"{len(failures)} of {images} images failed (limit {limit:.0%}), for instance {key}: {cause}; the other "
            f"labels are kept: see 'ovbridge label status {store}', mend the images and add --retry-failed, "
            "or raise --max-failed"
        )
