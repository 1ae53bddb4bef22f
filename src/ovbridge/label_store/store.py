"""A label store: a folder with the tables that teachers write and students read.

    STORE/regions.lance  regions.json   regions.log.jsonl    RKD regions, who made them, what each commit took
    STORE/tags.lance     tags.json      tags.log.jsonl       PIS boxes
    STORE/text/NAME.safetensors                              text banks

Teachers meet the student only here.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

from ovbridge.errors import StoreError, VocabularyError
from ovbridge.label_store.lock import locked
from ovbridge.label_store.log import append_log, read_rate
from ovbridge.label_store.manifest import ImageSet, Manifest
from ovbridge.label_store.schema import LabelledImage, Table, arrow_schema, read_regions, read_tags
from ovbridge.label_store.table import MEMORY_LIMIT_BYTES, LabelTable, differ
from ovbridge.structures import ImageLabels, RegionTargets
from ovbridge.vocabulary import TextBank, Vocabulary

TABLES: tuple[Table, ...] = get_args(Table)

_NOTHING = {"images": 0, "failed": 0, "of": 0, "empty": 0, "boxes": 0, "images_per_second": 0.0, "causes": {}}
"""Status of a table that was never begun."""


class LabelStore:
    """Labels of many images in one folder. Picklable; safe to hand to spawned data-loader workers."""

    def __init__(self, path: Path, *, memory_limit: int = MEMORY_LIMIT_BYTES) -> None:
        self.path = path
        self._memory_limit = memory_limit
        self._manifests = {
            t: Manifest.load(_manifest_path(path, t)) for t in TABLES if _manifest_path(path, t).exists()
        }
        self._tables = {
            t: LabelTable(path / f"{t}.lance", arrow_schema(t, m.embedding_dim), memory_limit=memory_limit)
            for t, m in self._manifests.items()
        }
        self._checked_vocabulary: Vocabulary | None = None

    @classmethod
    def open(cls, path: str | Path, *, memory_limit: int = MEMORY_LIMIT_BYTES) -> LabelStore:
        """Open what is there; raises StoreError if `path` holds no labels."""
        path = Path(path)
        store = cls(path, memory_limit=memory_limit)
        if not store._manifests and not (path / "text").is_dir():
            raise StoreError(
                f"{path} holds no labels: make them with 'ovbridge label regions --images DIR --store {path}'"
            )
        return store

    @classmethod
    def create_or_open(cls, path: str | Path, *manifests: Manifest) -> LabelStore:
        """Open `path` for appending to the tables of `manifests`, making what is missing.

        Raises StoreError if one of the tables was made by another teacher or under other rules; then none is made.
        """
        path = Path(path)
        try:
            for manifest in manifests:
                _merged(path, manifest)
            for manifest in manifests:
                with locked(path / f"{manifest.table}.lock"):
                    known, merged = _merged(path, manifest)
                    if merged != known:
                        merged.save(_manifest_path(path, manifest.table))
        except OSError as error:
            raise StoreError(f"cannot write to {path} ({error.strerror}): choose another --store") from None
        return cls(path)

    def __contains__(self, table: Table) -> bool:
        return table in self._manifests

    def manifest(self, table: Table) -> Manifest:
        """How `table` was made; raises StoreError if the store has none."""
        if table not in self._manifests:
            raise StoreError(f"{self.path} has no {table}: make them with 'ovbridge label {table}'")
        return self._manifests[table]

    def image_sets(self) -> tuple[ImageSet, ...]:
        """Every image folder that labels were made for."""
        return tuple(s for m in self._manifests.values() for s in m.image_sets)

    def _table(self, table: Table) -> LabelTable:
        self.manifest(table)
        return self._tables[table]

    def done_keys(self, table: Table, asked_of: Callable[[str], Sequence[str] | None] | None = None) -> set[str]:
        """Images that need no more work: labelled, found empty, or failed.

        Those whose tags were asked for other names than `asked_of` their key are not done.
        """
        stored = self._table(table).asked()
        return {key for key, names in stored.items() if asked_of is None or not differ(names, asked_of(key))}

    def keys_of_unknown_names(self, table: Table) -> set[str]:
        """Images that were labelled when a store did not note yet which names they were asked for."""
        return {key for key, names in self._table(table).asked().items() if names is None}

    def append(self, table: Table, images: Sequence[LabelledImage], *, seconds: float = 0.0, of: int = 0) -> list[str]:
        """Commit the outcome of some images; those already there are left alone unless they were asked for other names.

        `seconds` since the last commit and `of` images in the run are noted for `status`. Returns the
        keys that were added; on return they are on disk.
        """
        added = self._table(table).append(images)
        # The rows are safe by now; a rate that cannot be noted is no reason to stop.
        with suppress(OSError):
            append_log(_log_path(self.path, table), images=len(added), seconds=seconds, of=of)
        return added

    def failures(self, table: Table) -> dict[str, str]:
        """Image key → cause, of every image that failed."""
        rows = self._table(table).columns(["image_key", "cause"], "status = 'failed'").to_pydict()
        return dict(zip(rows["image_key"], rows["cause"], strict=True))

    def discard_failures(self, table: Table, image_keys: Collection[str]) -> int:
        """Forget which of these images failed so that the next run takes them up again; returns how many."""
        return self._table(table).discard_failed(image_keys)

    def compact(self, table: Table, *, at_fragments: int = 1) -> None:
        """Merge small files, if there are `at_fragments`, and remove leftovers; rows stay as they are."""
        self._table(table).compact(at_fragments=at_fragments)

    def make_vector_index(self, table: Table, column: str) -> None:
        """Index the vectors of a column by cosine; see `LabelTable.make_vector_index`."""
        self._table(table).make_vector_index(column)

    def regions(self, image_keys: Sequence[str]) -> dict[str, RegionTargets]:
        """RKD targets of the images that have them, boxes in pixels of the original image.

        An image without any region has empty targets; one that was not labelled, or failed, is absent.
        """
        return read_regions(*self._table("regions").rows(image_keys))

    def tags(
        self, image_keys: Sequence[str], vocabulary: Vocabulary, *, min_score: float = 0.0
    ) -> dict[str, ImageLabels]:
        """PIS boxes of the images that have them, boxes in pixels of the original image.

        Class ids are columns of `vocabulary`; labels that it does not name are left out, as are boxes
        scored `min_score` or less. Raises VocabularyError if it names none of the stored labels.
        """
        table = self._table("tags")
        if vocabulary != self._checked_vocabulary:
            stored = set(table.columns(["name"], "status = 'ok'")["name"].to_pylist())
            if stored and stored.isdisjoint(vocabulary.names):
                raise VocabularyError(
                    f"none of the {len(stored)} labels in {self.path} ({', '.join(sorted(stored)[:3])}, ...) is in the "
                    "vocabulary: label tags with the annotation file of this training set"
                )
            self._checked_vocabulary = vocabulary
        column_of = {name: k for k, name in enumerate(vocabulary.names)}
        return read_tags(*table.rows(image_keys), column_of, min_score)

    def text_bank(self, name: str = "default") -> TextBank:
        """The stored text bank `name`; raises StoreError naming those that exist."""
        file = self.path / "text" / f"{name}.safetensors"
        if not file.is_file():
            there = ", ".join(sorted(self._text_banks())) or "none"
            raise StoreError(
                f"{self.path} has no text bank {name!r} (it has: {there}): make it with 'ovbridge label text'"
            )
        return TextBank.load(file)

    def tag_counts(self) -> dict[str, int]:
        """Class name → number of its PIS boxes; empty where the store has no tags."""
        if "tags" not in self:
            return {}
        names = self._table("tags").columns(["name"], "status = 'ok'")["name"].to_pylist()
        return dict(Counter(names))

    def text_names(self) -> dict[str, tuple[str, ...]]:
        """Text bank → its names."""
        return {name: self.text_bank(name).names for name in self._text_banks()}

    def _text_banks(self) -> list[str]:
        return [file.stem for file in sorted((self.path / "text").glob("*.safetensors"))]

    def status(self) -> dict[str, Any]:
        """Progress, failures by cause, rate and origin of every table.

        `images` are labelled (with or without boxes), `failed` are not; `of` is how many of either there will be once
        the last run and its other shards are through. A table that was never begun has zeros, a text bank that
        cannot be read has only `damaged` with the reason.
        """
        report: dict[str, Any] = {
            table: self._table_status(table) if table in self else dict(_NOTHING) for table in TABLES
        }
        report["text"] = {name: self._bank_status(name) for name in self._text_banks()}
        return report

    def _bank_status(self, name: str) -> dict[str, Any]:
        try:
            bank = self.text_bank(name)
        except VocabularyError as error:
            return {"damaged": str(error)}
        return {"names": len(bank.names), "dim": bank.dim, "encoder": bank.encoder, "templates": list(bank.templates)}

    def _table_status(self, table: Table) -> dict[str, Any]:
        lance_table, manifest = self._table(table), self.manifest(table)
        status = lance_table.columns(["status"], "rank = 0")["status"].to_pylist()
        boxes = lance_table.columns(["rank"], "status = 'ok'").num_rows
        failures = self.failures(table)
        causes: dict[str, int] = {}
        for cause in failures.values():
            causes[cause] = causes.get(cause, 0) + 1
        rate = read_rate(_log_path(self.path, table))
        size = _bytes_on_disk(lance_table.path)
        return {
            "images": len(status) - len(failures),
            "failed": len(failures),
            "of": rate.of,
            "empty": status.count("empty"),
            "boxes": boxes,
            "images_per_second": rate.images_per_second,
            "bytes_per_image": round(size / max(len(status), 1)),
            "causes": dict(sorted(causes.items(), key=lambda item: -item[1])),
            "failures": failures,
            "proposer": manifest.proposer,
            "proposer_trained_on": manifest.proposer_trained_on,
            "encoder": manifest.encoder,
        }


def _bytes_on_disk(folder: Path) -> int:
    """Bytes of all files below `folder`; what a writer elsewhere removes while we count is not counted."""
    size = 0
    for parent, _, names in os.walk(folder):  # leaves folders that vanish out by itself
        for name in names:
            with suppress(FileNotFoundError):
                size += os.stat(os.path.join(parent, name)).st_size
    return size


def save_text_bank(store: str | Path, bank: TextBank, name: str = "default") -> Path:
    """Write `bank` as the text bank `name` of a store, which need not exist yet; returns the file."""
    if not re.fullmatch(r"[\w.-]+", name):
        raise StoreError(f"{name!r} cannot name a text bank: use letters, digits, '-', '_' and '.'")
    file = Path(store) / "text" / f"{name}.safetensors"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        bank.save(file)
    except OSError as error:
        raise StoreError(f"cannot write {file} ({error}): choose another --store") from None
    return file


def _merged(store: Path, manifest: Manifest) -> tuple[Manifest | None, Manifest]:
    """The manifest that the store has, and that with what `manifest` adds; StoreError where they do not fit."""
    file = _manifest_path(store, manifest.table)
    # Asked first: a manifest is written before any row, so another process that begins the store is no loss.
    has_rows = (store / f"{manifest.table}.lance").exists()
    if not file.exists():
        if has_rows:
            raise StoreError(
                f"{store} has {manifest.table} and no {file.name} that says which teacher made them: put the file "
                "back, or use another --store"
            )
        return None, manifest
    known = Manifest.load(file)
    known.check_same_origin(manifest, store)
    merged = known
    for image_set in manifest.image_sets:
        merged = merged.with_image_set(image_set)
    return known, merged


def _manifest_path(store: Path, table: Table) -> Path:
    return store / f"{table}.json"


def _log_path(store: Path, table: Table) -> Path:
    return store / f"{table}.log.jsonl"
