"""Image-level labels out of ImageNet-21K: a folder or a tar archive for each synset, read as a stream.

The 997 synsets that are LVIS classes come with the package: WordNet 3.0 gives every WordNet id its synset name, LVIS
names the same synsets.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from ovbridge.console import Ticker
from ovbridge.data.image_reading import image_hw
from ovbridge.data.known_counts import against_known
from ovbridge.data.ovd_files import write_once
from ovbridge.errors import DataError
from ovbridge.images import SUFFIXES
from ovbridge.tar_members import members
from ovbridge.vocabulary.released import lvis_v1

LVIS_LABELS_FILE, WORDS_LABELS_FILE = "imagenet_lvis.json", "imagenet_words.json"
KNOWN_SYNSETS = 997
"""Synsets of ImageNet-21K (winter 2021) that are LVIS v1 classes."""


@dataclass(frozen=True, kw_only=True)
class Synset:
    """One class of images and where they lie."""

    wnid: str
    """WordNet id, e.g. n02691156."""
    category: Mapping[str, Any]
    """The category record that its images are labelled with."""
    source: Path
    """Folder of images, or an uncompressed tar archive of them."""


def write_imagenet_labels(
    images: Path, out: Path, *, words: Path | None = None, allow_count_mismatch: bool = False
) -> dict[str, Any]:
    """Label every image of a synset with the one class that the synset stands for.

    Writes a COCO-like file whose images carry `pos_category_ids` (one each) and whose file names start at `images`;
    members of an archive are "n02691156.tar/MEMBER". Images that cannot be read are left out and counted.

    Args:
        images: Folder that holds nXXXXXXXX folders or nXXXXXXXX.tar archives.
        out: Folder for imagenet_lvis.json (or imagenet_words.json).
        words: ImageNet's words.txt ("n02691156<tab>airplane, aeroplane, plane"): take every synset there is, under
            its own names, not only those of LVIS; for the strict protocol.
        allow_count_mismatch: Go on although more than half but not all of the LVIS synsets are there.

    Returns:
        {"synsets", "images", "left_out": {name: cause, at most 20}, "left_out_images", "other_synsets", "per_role",
        "known_counts", "files"}.

    Raises:
        DataError: Nothing fits, an archive is broken, or synsets are missing.
    """
    there = _sources(images)
    known = lvis_categories() if words is None else word_categories(words)
    synsets = [Synset(wnid=w, category=known[w], source=there[w]) for w in sorted(there) if w in known]
    if not synsets:
        raise DataError(
            f"{images} holds no folder or .tar of a known synset: expected {images}/n02691156 or n02691156.tar"
        )
    counts: dict[str, Any] = {"synsets": len(synsets), "other_synsets": len(there) - len(synsets)}
    verdict: str = "not compared"
    if words is None:
        verdict = against_known(
            counts, {"synsets": KNOWN_SYNSETS}, images, size_key="synsets", allow_mismatch=allow_count_mismatch
        )
    records: list[dict[str, Any]] = []
    left_out: dict[str, str] = {}
    with Ticker("read synsets", len(synsets)) as tick:
        for synset in synsets:
            for name, size in _images_of(synset):
                if isinstance(size, str):
                    left_out[name] = size
                    continue
                label = {"pos_category_ids": [synset.category["id"]]}
                records.append(
                    {"id": len(records) + 1, "file_name": name, "height": size[0], "width": size[1], **label}
                )
            tick(note=f"{len(records)} images")
    if not records:
        raise DataError(
            f"{images}: no image of {len(synsets)} synsets can be read (first: {next(iter(left_out.items()), None)})"
        )
    categories = sorted(known.values(), key=lambda c: int(c["id"]))
    if words is not None:
        used = {s.category["id"] for s in synsets}
        categories = [c for c in categories if c["id"] in used]
    target = out / (LVIS_LABELS_FILE if words is None else WORDS_LABELS_FILE)
    info = {"description": "ImageNet-21K images, one label each"}
    write_once(target, {"info": info, "images": records, "annotations": [], "categories": categories})
    role_of = {c["id"]: c["role"] for c in categories}
    per_role: dict[str, int] = {}
    for record in records:
        role = role_of[record["pos_category_ids"][0]]
        per_role[role] = per_role.get(role, 0) + 1
    return {
        **counts,
        "images": len(records),
        "left_out_images": len(left_out),
        "left_out": dict(list(left_out.items())[:20]),
        "per_role": per_role,
        "known_counts": verdict,
        "files": [str(target)],
    }


def lvis_categories() -> dict[str, dict[str, Any]]:
    """WordNet id → category record of the LVIS v1 class of that synset, for the 997 that ImageNet-21K has."""
    vocabulary = lvis_v1()
    column = vocabulary.column_of_category()
    text = resources.files("ovbridge.data").joinpath("imagenet_lvis_synsets.txt").read_text(encoding="utf-8")
    found = {}
    for line in text.splitlines():
        wnid, category_id, synset = line.split()
        k = column[int(category_id)]
        found[wnid] = {
            "id": int(category_id),
            "name": vocabulary.names[k],
            "role": vocabulary.roles[k],
            "synset": synset,
            "wnid": wnid,
        }
    return found


def word_categories(words: Path) -> dict[str, dict[str, Any]]:
    """WordNet id → category record by ImageNet's words.txt, ids in the file's order; equal names get their id added."""
    try:
        lines = words.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{words} cannot be read ({error}): give ImageNet's words.txt") from None
    found: dict[str, dict[str, Any]] = {}
    taken: set[str] = set()
    for line in lines:
        wnid, tab, names = line.partition("\t")
        synonyms = [n.strip() for n in names.split(",") if n.strip()]
        if not tab or not synonyms:
            raise DataError(f"{words}: line {line[:60]!r} is not 'n02691156<tab>airplane, aeroplane, plane'")
        name = synonyms[0] if synonyms[0] not in taken else f"{synonyms[0]} ({wnid})"
        taken.add(name)
        found[wnid] = {"id": len(found) + 1, "name": name, "role": "unused", "synonyms": synonyms, "wnid": wnid}
    return found


def _sources(images: Path) -> dict[str, Path]:
    """WordNet id → folder or archive; a folder wins where both are there."""
    if not images.is_dir():
        raise DataError(f"{images} is not a folder: give the folder of ImageNet-21K's synset folders or tar files")
    found: dict[str, Path] = {}
    for path in sorted(images.iterdir()):
        wnid = path.name.removesuffix(".tar")
        is_source = path.is_dir() if path.name == wnid else path.is_file()
        if is_source and wnid[:1] == "n" and wnid[1:].isdigit() and (path.is_dir() or wnid not in found):
            found[wnid] = path
    return found


def _images_of(synset: Synset) -> Iterator[tuple[str, tuple[int, int] | str]]:
    """(file name below the images folder, (height, width) or why it cannot be read) of every image, in order."""
    source = synset.source
    inside = [p.name for p in source.iterdir()] if source.is_dir() else members(source)
    for name in sorted(n for n in inside if Path(n).suffix.lower() in SUFFIXES):
        try:
            yield f"{source.name}/{name}", image_hw(source / name)
        except DataError as error:
            yield f"{source.name}/{name}", str(error)
