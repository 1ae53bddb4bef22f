"""`ovbridge prepare`: annotation files of the open-vocabulary protocols out of the public downloads."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from ovbridge.cli.arguments import call, pick
from ovbridge.errors import ConfigError

PARTS = {
    "coco-ovd": "boxes of the 48 base classes to train on, of base and novel ones to evaluate on",
    "coco-captions": "image-level labels out of the captions",
}
COCO_OVD_EXAMPLES = """\
ovbridge prepare coco-ovd --annotations coco/annotations --out coco/ovd
ovbridge prepare coco-ovd --annotations data/world/annotations --out data/world/ovd --json"""
COCO_CAPTIONS_EXAMPLES = """\
ovbridge prepare coco-captions --annotations coco/annotations --out coco/ovd
ovbridge prepare coco-captions --annotations coco/annotations --out coco/ovd --rule words"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    part = pick(argv, "ovbridge prepare", PARTS)
    if part == "coco-ovd":
        call(coco_ovd, argv[1:], verb="prepare coco-ovd", examples=COCO_OVD_EXAMPLES)
    else:
        call(coco_captions, argv[1:], verb="prepare coco-captions", examples=COCO_CAPTIONS_EXAMPLES)


def coco_ovd(*, annotations: Path, out: Path, allow_count_mismatch: bool = False, json: bool = False) -> None:
    """Make the OV-COCO files: train keeps base boxes, val base and novel ones; images without any are dropped.

    Args:
        annotations: Folder with instances_train2017.json and, if there is one, instances_val2017.json.
        out: Folder for instances_train2017_base.json and instances_val2017_ovd.json.
        allow_count_mismatch: Go on although the full COCO files give other counts than the published ones.
        json: Print the counts as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.data.ovd_files import write_coco_ovd

    counts = write_coco_ovd(annotations, out, allow_count_mismatch=allow_count_mismatch)
    if json:
        print(json_format.dumps(counts))
        return
    for split in ("train", "val"):
        if split in counts:
            c = counts[split]
            stdout.print(
                f"{split}: {c['images']} images with {c['annotations']} boxes; left out {c['dropped_images']} images "
                f"and {c['dropped_annotations']} boxes",
                soft_wrap=True,
            )
    stdout.print(f"known counts of OV-COCO: {counts['known_counts']}")
    stdout.print(f"written to {out}", soft_wrap=True)


def coco_captions(
    *,
    annotations: Path,
    out: Path,
    rule: Literal["paper", "words"] = "paper",
    lvis_cat_info: Path | None = None,
    coco_to_synset: Path | None = None,
    json: bool = False,
) -> None:
    """Label the images of captions_train2017.json with the classes that their captions name.

    Args:
        annotations: Folder with captions_train2017.json.
        out: Folder for captions_train2017_tags.json.
        rule: The paper's substring rule, or words with plurals, punctuation and the longest match.
        lvis_cat_info: LVIS categories with synonyms; by default those shipped for the COCO classes.
        coco_to_synset: LVIS's coco_to_synset.json, together with --lvis-cat-info.
        json: Print the counts as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.data.image_labels import synonyms_from_lvis
    from ovbridge.data.ovd_files import write_caption_tags

    if (lvis_cat_info is None) != (coco_to_synset is None):
        raise ConfigError("--lvis-cat-info and --coco-to-synset belong together: give both or neither")
    synonyms = synonyms_from_lvis(lvis_cat_info, coco_to_synset) if lvis_cat_info and coco_to_synset else None
    counts = write_caption_tags(annotations, out, rule=rule, synonyms=synonyms)
    if json:
        print(json_format.dumps(counts))
        return
    stdout.print(
        f"{counts['images']} images with {counts['tags']} labels; left out {counts['dropped_images']} without a label"
    )
    stdout.print(f"written to {out}", soft_wrap=True)
