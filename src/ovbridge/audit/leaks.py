"""The checks: one a channel, each a function from what training reads to findings.

boxes: annotations of novel classes. class names: boxes of a class that is a novel one under another name. synonyms: a
trained class that lists a novel name among its own. annotation text: phrases of the boxed images. tags, captions,
image folders: image-level labels. pseudo boxes, queries: the label store. proposer: what its training saw, as its
manifest declares. vocabulary, text bank: novel names as columns of the classifier in training.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ovbridge.audit.findings import Channel, Finding, Severity
from ovbridge.audit.names import NovelNames

TEXT_KEYS = ("caption", "captions", "phrase", "phrases", "text", "tags", "labels", "description", "expression", "title")
"""Keys of image and annotation records that hold words."""

OPEN_DATA = (
    "LMDet",
    "Flickr30k",
    "Visual Genome",
    "GoldG",
    "Cap4M",
    "GQA",
    "RefCOCO",
    "WebLI",
    "GRIT",
    "V3Det",
    "Objects365",
    "OpenImages",
    "Open Images",
    "CC3M",
    "CC12M",
    "LAION",
    "COCO Captions",
)
"""Data sets whose texts or boxes name everyday objects, the novel classes among them."""

_Hit = tuple[str, tuple[str, ...]]
"""(the record by its id with its words, the novel classes named)."""


def finding(channel: Channel, severity: Severity, where: object, hits: Iterable[_Hit]) -> Iterator[Finding]:
    """One finding of all `hits`, none without any."""
    listed = list(hits)
    if listed:
        names = tuple(dict.fromkeys(name for _, found in listed for name in found))
        yield Finding(
            channel=channel,
            severity=severity,
            names=names[:10],
            count=len(listed),
            where=str(where),
            example=listed[0][0],
        )


def box_findings(payload: Mapping[str, Any], novel: NovelNames, where: object) -> Iterator[Finding]:
    """Boxes of novel classes, by their own name or another, in an annotation file that is trained on."""
    categories = {c["id"]: c for c in payload.get("categories", ())}
    boxed: dict[int, int] = {}
    for annotation in payload.get("annotations", ()):
        if "bbox" in annotation or "segmentation" in annotation:
            boxed.setdefault(annotation["category_id"], annotation["id"])
    stands_for = {i: novel.of_class(str(c["name"])) for i, c in categories.items()}
    own = {i for i, c in categories.items() if c["name"] in novel.names}
    for channel, ids in (("boxes", own), ("class names", stands_for.keys() - own)):
        yield from finding(
            channel,  # type: ignore[arg-type]
            "leak",
            where,
            (
                (f"annotation {a['id']} of category {a['category_id']} ({categories[a['category_id']]['name']})", names)
                for a in payload.get("annotations", ())
                if a.get("category_id") in ids and (names := stands_for[a["category_id"]])
            ),
        )
    yield from finding(
        "synonyms",
        "leak",
        where,
        (
            (f"category {c['id']} ({c['name']}) lists {s!r}", names)
            for i, c in categories.items()
            if i in boxed and not stands_for[i]
            for s in c.get("synonyms", ())
            if str(s) != c["name"] and (names := _exactly(novel, str(s)))
        ),
    )
    yield from finding("tags", "known vocabulary", where, _tags(payload, novel))
    yield from finding("annotation text", "known vocabulary", where, _texts(payload, novel, captions=False))
    yield from finding("image folders", "known vocabulary", where, _folders(payload.get("images", ()), novel))


def _exactly(novel: NovelNames, synonym: str) -> tuple[str, ...]:
    """Novel classes whose own name a synonym is; what LVIS lists as a synonym of both is left alone."""
    plain = synonym.replace("_", " ").lower().strip()
    return tuple(
        n for n in novel.in_text(synonym) if plain in (n.lower(), n.lower() + "s", n.replace("_", " ").lower())
    )


def vocabulary_findings(names: Sequence[str], novel: NovelNames, where: object) -> Iterator[Finding]:
    """Novel names among the columns of the classifier that is trained."""
    yield from finding(
        "vocabulary",
        "known vocabulary",
        where,
        ((f"class {n!r}", found) for n in names if (found := novel.of_class(n))),
    )


def label_findings(payload: Mapping[str, Any], novel: NovelNames, where: object) -> Iterator[Finding]:
    """Image-level labels: tag lists, captions, folders named after classes."""
    yield from finding("tags", "known vocabulary", where, _tags(payload, novel))
    yield from finding("captions", "known vocabulary", where, _texts(payload, novel, captions=True))
    yield from finding("image folders", "known vocabulary", where, _folders(payload.get("images", ()), novel))


def folder_findings(root: Path, novel: NovelNames) -> Iterator[Finding]:
    """Folders (or archives) of images that are named after novel classes."""
    inside = sorted(root.iterdir()) if root.is_dir() else []
    yield from finding(
        "image folders",
        "known vocabulary",
        root,
        (
            (f"folder {p.name}", names)
            for p in inside
            if p.is_dir() and (names := novel.of_class(p.name.replace("_", " ")))
        ),
    )


def store_findings(
    tag_counts: Mapping[str, int],
    queries: Sequence[str],
    banks: Mapping[str, Sequence[str]],
    novel: NovelNames,
    where: object,
) -> Iterator[Finding]:
    """What a label store holds: pseudo boxes under a name, text queries, text banks."""
    hits = [
        (f"{count} boxes of {name!r}", found) for name, count in tag_counts.items() if (found := novel.of_class(name))
    ]
    yield from finding("pseudo boxes", "known vocabulary", where, hits)
    yield from finding(
        "queries", "leak", where, ((f"query {q!r}", found) for q in queries if (found := novel.in_text(q)))
    )
    for bank, names in banks.items():
        yield from finding(
            "text bank",
            "known vocabulary",
            f"{where} (text bank {bank!r})",
            ((f"row {n!r}", found) for n in names if (found := novel.of_class(n))),
        )


def proposer_findings(name: str, trained_on: str, novel: NovelNames, where: object) -> Iterator[Finding]:
    """What the training of a proposer saw, by its own declaration."""
    roles = re.search(r"roles \[(.*?)\]", trained_on)
    said_seen = (roles is not None and "novel" in roles.group(1)) or "novel names included" in trained_on
    said_seen = said_seen or "has seen novel" in trained_on or "ground truth" in trained_on
    excluded = re.search(
        r"novel objects left out|names never shown|without (the )?novel|novel names excluded|filtered LMDet", trained_on
    )
    data_set = next((d for d in OPEN_DATA if d.lower() in trained_on.lower()), None)
    named = novel.in_text(re.sub(r"\S+\.(json|csv|pkl)", " ", trained_on))
    if not trained_on.strip() or trained_on.lower().startswith(("not said", "unknown", "the annotations")):
        yield from finding("proposer", "undeclared", where, [(f"{name} does not say what it was trained on", ())])
    elif said_seen or named or (data_set and not excluded):
        why = "novel names" if said_seen else f"the name {named[0]!r}" if named else f"{data_set}, which names them"
        yield from finding("proposer", "leak", where, [(f"{name} was trained on {why}: {trained_on}", named)])


def backbone_findings(trained_on: str, novel: NovelNames, where: object) -> Iterator[Finding]:
    """What a pretrained backbone was taught to name, by its own declaration.

    Labels of single objects are image labels: they make a vocabulary known, as ImageNet weights do, and leak no box.
    """
    if "novel names included" in trained_on:
        hit = (f"its pretraining named novel objects: {trained_on}", tuple(novel.names))
        yield from finding("backbone", "known vocabulary", where, [hit])


def _tags(payload: Mapping[str, Any], novel: NovelNames) -> Iterator[_Hit]:
    categories = {c["id"]: str(c["name"]) for c in payload.get("categories", ())}
    named = {i: novel.of_class(name) for i, name in categories.items()}
    for image in payload.get("images", ()):
        for c in image.get("pos_category_ids", ()):
            if named.get(c):
                yield f"image {image['id']} is tagged {categories[c]!r}", named[c]


def _texts(payload: Mapping[str, Any], novel: NovelNames, *, captions: bool) -> Iterator[_Hit]:
    """Words in image and annotation records; `captions`: annotations without a box (a captions file) count too."""
    for kind in ("images", "annotations"):
        for record in payload.get(kind, ()):
            if kind == "annotations" and not captions and "bbox" not in record:
                continue
            for text in _words(record):
                names = novel.in_text(text)
                if names:
                    yield f"{kind[:-1]} {record.get('id')}: {text[:80]!r}", names
                    break


def _words(record: Mapping[str, Any]) -> Iterator[str]:
    for key in TEXT_KEYS:
        value = record.get(key)
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str):
                yield text


def _folders(images: Iterable[Mapping[str, Any]], novel: NovelNames) -> Iterator[_Hit]:
    seen: dict[str, tuple[str, ...]] = {}
    for image in images:
        folder = str(image.get("file_name", "")).rpartition("/")[0]
        if folder not in seen:
            seen[folder] = novel.of_class(folder.rsplit("/", 1)[-1].replace("_", " ")) if folder else ()
        if seen[folder]:
            yield f"image {image.get('id')} lies in {folder}", seen[folder]
