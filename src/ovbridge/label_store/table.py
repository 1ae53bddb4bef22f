"""One Lance dataset of labels: atomic appends that are idempotent by image key, and fast random reads.

A commit is one Lance version: a killed writer leaves a data file nobody refers to, never half a row. Labels that
replace older ones of an image take two: a kill between them leaves the image to be labelled again.
Writers take an advisory lock for the moment of a commit and drop images that somebody else committed
first, so concurrent labellers lose nothing and label nothing twice in the store.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ovbridge.errors import StoreError
from ovbridge.label_store.lock import locked
from ovbridge.label_store.schema import ASKED, Columns, LabelledImage, Ranges, to_arrow, to_numpy

ROWS_PER_FRAGMENT = 1 << 20
FEWEST_INDEXED = 4096
"""A vector index learns 256 centres a sub-vector: from fewer rows it would learn nothing."""
MEMORY_LIMIT_BYTES = 256 << 20
"""Columns are held in memory up to this size, narrow ones first; the rest is read from disk when asked for."""


KEYS_PER_CONDITION = 10_000
"""An SQL condition names at most so many images."""
UNREAD = ("image_key", "rank", "status", "cause", ASKED.name)
"""Columns that are no labels."""
READ_AGAIN = 20
"""A reader meets so many compactions in a row before it gives up; one takes longer than opening the data set anew."""
_Found = TypeVar("_Found")


class LabelTable:
    """A Lance dataset at `path`, which need not exist yet. Picklable; every process opens its own handle."""

    def __init__(self, path: Path, schema: pa.Schema, *, memory_limit: int = MEMORY_LIMIT_BYTES) -> None:
        self.path = path
        self._schema = schema
        self._memory_limit = memory_limit
        self._forget()

    def _forget(self) -> None:
        self._known: dict[str, tuple[str, ...] | None] = {}
        self._known_version = 0
        self._reader: _Reader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {"path": self.path, "_schema": self._schema, "_memory_limit": self._memory_limit}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._forget()

    def exists(self) -> bool:
        """Whether anything was ever committed."""
        return (self.path / "_versions").is_dir() and any((self.path / "_versions").iterdir())

    def asked(self) -> Mapping[str, tuple[str, ...] | None]:
        """Image keys with committed rows, those of other writers included → the names that each was asked for."""
        if self.exists():
            read_settled(self.path, self._learn)
        return dict(self._known)

    def _learn(self, dataset: Any) -> None:
        if dataset.version != self._known_version:
            noted = ASKED.name in dataset.schema.names
            names = ["image_key", *([ASKED.name] if noted else [])]
            rows = dataset.scanner(columns=names, filter="rank = 0").to_table()
            keys = rows["image_key"].to_pylist()
            asked = rows[ASKED.name].to_pylist() if noted else [None] * len(keys)
            self._known = {k: None if a is None else tuple(a) for k, a in zip(keys, asked, strict=True)}
            self._known_version = dataset.version

    def append(self, images: Sequence[LabelledImage]) -> list[str]:
        """Commit the images that are not there yet, or were asked for other names; when it returns they are on disk.

        Returns the keys that were added. Raises StoreError where the disk refuses; rows committed
        before stay readable.
        """
        import lance

        with self._write("write to"):
            dataset = _open(self.path) if self.exists() else None
            if dataset is not None:
                self._learn(dataset)
            fresh = {i.image_key: i for i in images if i.image_key not in self._known or self._is_outdated(i)}
            if fresh:
                rows = to_arrow(list(fresh.values()), self._schema)
                if dataset is not None:
                    self._prepare(dataset, [key for key in fresh if key in self._known])
                written = (
                    lance.write_dataset(rows, str(self.path), mode="create")
                    if dataset is None
                    else lance.write_dataset(rows, dataset, mode="append")
                )
                self._known.update({key: image.asked for key, image in fresh.items()})
                self._known_version = written.version
            return list(fresh)

    def _is_outdated(self, image: LabelledImage) -> bool:
        return differ(self._known[image.image_key], image.asked)

    def _prepare(self, dataset: Any, outdated: Sequence[str]) -> None:
        """Make room for rows: the columns that an older store lacks, and the images that are replaced."""
        if ASKED.name in self._schema.names and ASKED.name not in dataset.schema.names:
            dataset.add_columns(ASKED)
        for condition in _any_of(outdated):
            dataset.delete(condition)

    def discard_failed(self, image_keys: Collection[str]) -> int:
        """Forget which of these images failed, so that a run takes them up again; returns how many."""
        if not self.exists():
            return 0
        with self._write("change"):
            dataset = _open(self.path)
            rows = dataset.scanner(columns=["image_key"], filter="status = 'failed'").to_table()
            failed = sorted(set(rows["image_key"].to_pylist()) & set(image_keys))
            for condition in _any_of(failed):
                dataset.delete(condition)
            return len(failed)

    def compact(self, *, at_fragments: int = 1) -> None:
        """Merge small files, from `at_fragments` on, and remove what no version needs, leftovers of kills included."""
        if not self.exists() or len(_open(self.path).get_fragments()) < at_fragments:
            return
        with self._write("compact"):
            dataset = _open(self.path)
            self._learn(dataset)
            dataset.optimize.compact_files(target_rows_per_fragment=ROWS_PER_FRAGMENT)
            self._known_version = dataset.version
            # Safe although it ignores the age of files: nobody else is inside the lock.
            dataset.cleanup_old_versions(older_than=timedelta(0), delete_unverified=True)

    def make_vector_index(self, column: str) -> None:
        """Index the vectors of `column` by cosine (inverted lists over product-quantised residuals).

        Rows that are appended later are searched beside it until it is made again. Raises StoreError where the disk
        refuses or there are too few rows to learn an index from.
        """
        if not self.exists():
            raise StoreError(f"{self.path} has no rows to index: label some images first")
        with self._write("index"):
            dataset = _open(self.path)
            count = dataset.count_rows(filter=f"{column} IS NOT NULL")
            if count < FEWEST_INDEXED:
                raise StoreError(
                    f"{self.path} has {count} vectors: searching them one by one is faster than an index below "
                    f"{FEWEST_INDEXED}; leave out --index"
                )
            width = self._schema.field(column).type.list_size
            dataset.create_index(
                column,
                index_type="IVF_PQ",
                metric="cosine",
                num_partitions=max(1, math.isqrt(count)),
                num_sub_vectors=math.gcd(width, max(1, width // 8)),
                replace=True,
            )
            self._known_version = 0

    def columns(self, names: Sequence[str], condition: str | None = None) -> pa.Table:
        """Some columns of all rows (that fulfil an SQL condition), in stored order."""
        if not self.exists():
            return self._schema.empty_table().select(list(names))
        return read_settled(
            self.path, lambda dataset: dataset.scanner(columns=list(names), filter=condition).to_table()
        )

    def rows(self, image_keys: Sequence[str]) -> tuple[Columns, Ranges]:
        """Label columns of the images that did not fail, and (first row, rows) of each; as of the first call here.

        An image without boxes has no rows; one that failed or is not there has no entry.
        """
        if self._reader is None or self._reader.process != os.getpid():
            self._reader = self._open_reader() if self.exists() else None
        if self._reader is None:
            return {field.name: to_numpy(self._schema.empty_table()[field.name]) for field in self._schema}, {}
        try:
            return self._reader.rows(image_keys)
        except (OSError, ValueError):
            # A compaction elsewhere removed the version that this reader had open.
            def read(dataset: Any) -> tuple[Columns, Ranges]:
                reader = self._reader = _Reader(dataset, self._schema, self._memory_limit)
                return reader.rows(image_keys)

            return read_settled(self.path, read)

    def _open_reader(self) -> _Reader:
        return read_settled(self.path, lambda dataset: _Reader(dataset, self._schema, self._memory_limit))

    @contextmanager
    def _write(self, verb: str) -> Iterator[None]:
        try:
            with locked(self.path.with_suffix(".lock")):
                yield
        except (OSError, pa.ArrowException) as error:
            reason = str(error).splitlines()[0][:200]
            raise StoreError(
                f"cannot {verb} {self.path} ({reason}): free or unlock the disk, then run the same command again"
            ) from error


def differ(stored: Sequence[str] | None, asked: Sequence[str] | None) -> bool:
    """Whether an image was asked for other names than it is now; not where either is unknown."""
    return stored is not None and asked is not None and set(stored) != set(asked)


def _any_of(image_keys: Sequence[str]) -> Iterator[str]:
    """SQL conditions that together hold for the rows of `image_keys`."""
    for start in range(0, len(image_keys), KEYS_PER_CONDITION):
        quoted = ("'" + key.replace("'", "''") + "'" for key in image_keys[start : start + KEYS_PER_CONDITION])
        yield f"image_key IN ({', '.join(quoted)})"


def _open(path: Path) -> Any:
    import lance

    try:
        return lance.dataset(str(path))
    except (OSError, ValueError) as error:
        raise _unreadable(path, error) from None


def read_settled(path: Path, read: Callable[[Any], _Found]) -> _Found:
    """What `read` finds in the newest version of a data set.

    A compaction may remove the files of a version while they are read: then the newest one is read from the start.
    Raises StoreError where a version that is still the newest cannot be read.
    """
    import lance

    failure: Exception = OSError("it changes all the time")
    seen = None
    for _ in range(READ_AGAIN):
        try:
            dataset = lance.dataset(str(path))
            version = dataset.version
        except (OSError, ValueError) as error:
            # Between the listing of the versions and the opening of the newest, it may be gone.
            failure = error
            continue
        try:
            return read(dataset)
        except (OSError, ValueError) as error:
            failure = error
        if version == seen:
            break
        seen = version
    raise _unreadable(path, failure)


def _unreadable(path: Path, error: Exception) -> StoreError:
    line = " ".join(str(error).split())[:200]
    return StoreError(f"{path} is not a readable Lance dataset ({line}): label into a new --store")


class _Reader:
    """A snapshot of a table: where the rows of each image are, and the rows themselves where they fit."""

    def __init__(self, dataset: Any, schema: pa.Schema, memory_limit: int) -> None:
        self.process = os.getpid()
        self._columns = [name for name in schema.names if name not in UNREAD]
        self._dataset = dataset
        self._none = schema.empty_table()
        index = self._dataset.to_table(columns=["image_key", "status"])
        runs = pc.run_end_encode(_one_array(index["image_key"]))
        ends = runs.run_ends.to_numpy().astype(np.int64)
        starts = np.concatenate([np.zeros(1, np.int64), ends])[: len(ends)]
        statuses = _one_array(index["status"]).take(pa.array(starts)).to_pylist()
        self._range_of = {
            key: (start, end if status == "ok" else start)
            for key, start, end, status in zip(
                runs.values.to_pylist(), starts.tolist(), ends.tolist(), statuses, strict=True
            )
            if status != "failed"
        }
        held = _columns_that_fit(schema, self._columns, index.num_rows, memory_limit)
        self._read_each_time = [name for name in self._columns if name not in held]
        table = self._dataset.to_table(columns=held) if held else None
        self._held = {name: to_numpy(table[name]) for name in held} if table is not None else {}

    def rows(self, image_keys: Sequence[str]) -> tuple[Columns, Ranges]:
        found = {key: self._range_of[key] for key in image_keys if key in self._range_of}
        counts = [end - start for start, end in found.values()]
        offsets = np.cumsum([0, *counts])[: len(counts)].tolist()
        positions = [i for start, end in found.values() for i in range(start, end)]
        columns = {name: values[np.asarray(positions, dtype=np.int64)] for name, values in self._held.items()}
        if self._read_each_time:
            taken = self._dataset.take(positions, columns=self._read_each_time) if positions else self._none
            columns |= {name: to_numpy(taken[name]) for name in self._read_each_time}
        return columns, dict(zip(found, zip(offsets, counts, strict=True), strict=True))


def _columns_that_fit(schema: pa.Schema, names: Sequence[str], rows: int, limit: int) -> list[str]:
    """The narrowest columns, as many as `limit` bytes hold: each one read from disk costs a request of its own."""
    held, used = [], 0
    for name in sorted(names, key=lambda n: _width_bytes(schema.field(n).type)):
        used += rows * _width_bytes(schema.field(name).type)
        if used > limit:
            break
        held.append(name)
    return held


def _one_array(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    return pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array


def _width_bytes(data_type: pa.DataType) -> int:
    if pa.types.is_fixed_size_list(data_type):
        return int(data_type.list_size * data_type.value_type.bit_width // 8)
    return 32 if pa.types.is_string(data_type) else int(data_type.bit_width // 8)
