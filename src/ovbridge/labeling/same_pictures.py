"""Whether images that a store has labels of are those of a run that comes with another folder.

A store knows an image by its path below the image folder, so two folders with equal names look alike to it. A folder
that was moved or copied is the same; other pictures under the same names must not get these labels.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

from ovbridge.errors import DataError, StoreError
from ovbridge.label_store import LabelStore, Table
from ovbridge.tar_members import opened

COMPARED = 16
"""So many images are compared, byte by byte."""


def check_same_pictures(
    store: LabelStore, root: Path, image_keys: Sequence[str], tables: Sequence[Table]
) -> str | None:
    """What to tell the user about images of `root` that `store` has from elsewhere; None where all is well.

    Raises StoreError where most of those that can be compared are other pictures.
    """
    begun = [table for table in tables if table in store]
    roots = dict.fromkeys(s.root for table in begun for s in store.manifest(table).image_sets)
    if not roots or str(root.resolve()) in roots:
        return None
    labelled = {key for table in begun for key in store.done_keys(table) - store.failures(table).keys()}
    shared = [key for key in image_keys if key in labelled]
    compared = [_is_same(key, root, roots) for key in shared[:: max(len(shared) // COMPARED, 1)][:COMPARED]]
    same, other = compared.count(True), compared.count(False)
    if other > same:
        raise StoreError(
            f"{store.path} has labels of {len(shared)} images of the same names from {', '.join(roots)}, for instance "
            f"{shared[0]}, and those in {root} are other pictures: use another --store"
        )
    if shared and not same:
        return (
            f"{len(shared)} of these images have been labelled from {', '.join(roots)} and are kept: if {root} holds "
            "other pictures of the same names, use another --store"
        )
    return None


def _is_same(key: str, root: Path, roots: Iterable[str]) -> bool | None:
    """Whether an image is in one of `roots` too; None where it cannot be told."""
    mine = _content(root / key)
    theirs = [content for other in roots if (content := _content(Path(other) / key)) is not None]
    return None if mine is None or not theirs else mine in theirs


def _content(path: Path) -> bytes | None:
    try:
        source = opened(path)
        return source.read_bytes() if isinstance(source, Path) else source.getvalue()
    except (OSError, DataError):
        return None
