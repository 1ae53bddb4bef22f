"""`ovbridge search`: find regions of a label store by text."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ovbridge.cli.arguments import call
from ovbridge.errors import ConfigError, StoreError

if TYPE_CHECKING:
    from ovbridge.label_store import LabelStore
    from ovbridge.teachers.clip import ClipTeacher

EXAMPLES = """\
ovbridge search runs/labels "a striped umbrella" --top 20
ovbridge search runs/labels "red mug" --sheet mugs.jpg --json
ovbridge search runs/labels "red mug" --index"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(search, argv, verb="search", examples=EXAMPLES)


def search(
    store: Path,
    query: str,
    /,
    *,
    top: int = 20,
    clip: str | None = None,
    template: str = "a photo of {}",
    images: Path | None = None,
    sheet: Path | None = None,
    index: bool = False,
    device: str = "auto",
    json: bool = False,
) -> None:
    """Find the regions of a label store that a text describes best.

    Args:
        store: Label store with regions.
        query: What to look for, e.g. "a striped umbrella".
        top: How many regions.
        clip: Text encoder; by default the one that embedded the regions.
        template: Prompt around the query.
        images: Folder of the images; by default where they were when they were labelled.
        sheet: Picture of the results; by default STORE/search/QUERY.jpg.
        index: Make the vector index of the store anew first; worth it from some 100,000 regions on.
        device: auto, cpu or cuda.
        json: Print the result as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.images import read_image
    from ovbridge.label_store import LabelStore
    from ovbridge.label_store.search import index_regions, search_regions
    from ovbridge.labeling.contact_sheet import contact_sheet

    if top < 1:
        raise ConfigError(f"--top is {top}: give at least 1")
    if "{}" not in template:
        raise ConfigError(f"--template {template!r} has no place for the query: write {{}} where it belongs")
    opened = LabelStore.open(store)
    teacher = _encoder_of(opened, clip, device)
    if index:
        index_regions(opened)
    hits = search_regions(opened, teacher.embed_texts([template.replace("{}", query)])[0], top=top)
    roots = [images] if images is not None else [Path(s.root) for s in opened.manifest("regions").image_sets]

    def find_image(key: str) -> Path | None:
        return next((root / key for root in roots if (root / key).is_file()), None)

    slug = re.sub(r"[^a-z0-9]+", "-", query.lower()).strip("-")[:80] or "query"
    sheet = sheet or store / "search" / f"{slug}.jpg"
    picture = contact_sheet(hits, find_image, read_image)
    try:
        sheet.parent.mkdir(parents=True, exist_ok=True)
        picture.save(sheet)
    except (OSError, ValueError) as error:
        raise StoreError(f"cannot write the contact sheet {sheet} ({error}): choose another --sheet") from None
    if json:
        print(json_format.dumps({"query": query, "hits": [hit.to_json() for hit in hits], "sheet": str(sheet)}))
        return
    for rank, hit in enumerate(hits, 1):
        box = ", ".join(f"{v:.0f}" for v in hit.box_xyxy)
        stdout.print(f"{rank:3d}  {hit.similarity:.3f}  {hit.image_key}  ({box})", soft_wrap=True)
    stdout.print(f"contact sheet: {sheet}", soft_wrap=True)


def _encoder_of(store: LabelStore, clip: str | None, device: str) -> ClipTeacher:
    from ovbridge.label_run import device_named
    from ovbridge.teachers.clip import load_clip

    manifest = store.manifest("regions")
    made_by = (manifest.encoder or "").removeprefix("open_clip:")
    if clip is None and "@" in made_by:
        raise StoreError(f"regions in {store.path} were embedded by the CLIP file {made_by}: give it with --clip")
    teacher = load_clip(clip or made_by, device_named(device))
    if teacher.digest != manifest.encoder_digest:
        raise StoreError(
            f"regions in {store.path} were embedded by CLIP {made_by}, {clip or made_by} has other weights: "
            "give the same CLIP with --clip"
        )
    return teacher
