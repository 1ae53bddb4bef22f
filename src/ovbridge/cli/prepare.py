"""`ovbridge prepare`: annotation files of the open-vocabulary protocols out of the public downloads."""

from __future__ import annotations

import json as json_format
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from ovbridge.cli.arguments import call, pick
from ovbridge.errors import ConfigError

PARTS = {
    "coco-ovd": "boxes of the 48 base classes to train on, of base and novel ones to evaluate on",
    "coco-captions": "image-level labels out of the captions",
    "lvis-ovd": "LVIS v1 without the boxes of rare classes, and its category statistics",
    "imagenet-lvis": "image-level labels of the 997 ImageNet-21K synsets that are LVIS classes, folders or tar files",
    "openimages": "OpenImages Challenge 2019 for cross-dataset evaluation, hierarchy expanded",
    "objects365": "Objects365 v2 for cross-dataset evaluation, names corrected",
    "strict": "training files that know no novel name: image labels of randomly drawn other classes",
}
COCO_OVD_EXAMPLES = """\
ovbridge prepare coco-ovd --annotations coco/annotations --out coco/ovd
ovbridge prepare coco-ovd --annotations data/world/annotations --out data/world/ovd --json"""
COCO_CAPTIONS_EXAMPLES = """\
ovbridge prepare coco-captions --annotations coco/annotations --out coco/ovd
ovbridge prepare coco-captions --annotations coco/annotations --out coco/ovd --rule words"""


LVIS_EXAMPLES = """\
ovbridge prepare lvis-ovd --annotations lvis --out lvis/ovd
ovbridge prepare lvis-ovd --annotations lvis_v1_train.json --out lvis/ovd --json"""
IMAGENET_EXAMPLES = """\
ovbridge prepare imagenet-lvis --images imagenet21k --out lvis/ovd
ovbridge prepare imagenet-lvis --images imagenet21k --words words.txt --out strict"""
OPENIMAGES_EXAMPLES = """\
ovbridge prepare openimages --annotations openimages/challenge2019 --images openimages/images --out openimages/ovd
ovbridge prepare openimages --annotations openimages/challenge2019 --image-sizes sizes.csv --out openimages/ovd"""
OBJECTS365_EXAMPLES = """\
ovbridge prepare objects365 --annotations zhiyuan_objv2_val.json --names-fix Objects365_names_fix.csv --out o365"""
STRICT_EXAMPLES = """\
ovbridge prepare strict --annotations ovd/instances_train2017_base.json --labels strict/imagenet_words.json --out strict
ovbridge prepare strict --annotations base.json --labels labels.json --out strict --classes 100 --seed 3"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    part = pick(argv, "ovbridge prepare", PARTS)
    parts: dict[str, tuple[Callable[..., None], str]] = {
        "coco-ovd": (coco_ovd, COCO_OVD_EXAMPLES),
        "coco-captions": (coco_captions, COCO_CAPTIONS_EXAMPLES),
        "lvis-ovd": (lvis_ovd, LVIS_EXAMPLES),
        "imagenet-lvis": (imagenet_lvis, IMAGENET_EXAMPLES),
        "openimages": (openimages, OPENIMAGES_EXAMPLES),
        "objects365": (objects365, OBJECTS365_EXAMPLES),
        "strict": (strict, STRICT_EXAMPLES),
    }
    function, examples = parts[part]
    call(function, argv[1:], verb=f"prepare {part}", examples=examples)


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


def lvis_ovd(*, annotations: Path, out: Path, allow_count_mismatch: bool = False, json: bool = False) -> None:
    """Remove the boxes of rare classes, keep every image, count images and boxes of every class.

    Args:
        annotations: lvis_v1_train.json, or a folder with it and perhaps lvis_v1_val.json.
        out: Folder for lvis_v1_train_norare.json and lvis_v1_train_norare_cat_info.json.
        allow_count_mismatch: Go on although a full LVIS gives other counts than the published ones.
        json: Print the counts as JSON.
    """
    from ovbridge.data.lvis_files import write_lvis_ovd

    _report(write_lvis_ovd(annotations, out, allow_count_mismatch=allow_count_mismatch), json)


def imagenet_lvis(
    *, images: Path, out: Path, words: Path | None = None, allow_count_mismatch: bool = False, json: bool = False
) -> None:
    """Label every image of the synsets with its one class; archives are read, not unpacked.

    Args:
        images: Folder with one folder (n02691156) or tar file (n02691156.tar) a synset.
        out: Folder for imagenet_lvis.json, or imagenet_words.json with --words.
        words: ImageNet's words.txt: take every synset there is, not only the 997 of LVIS (for the strict protocol).
        allow_count_mismatch: Go on although some of the 997 synsets are missing.
        json: Print the counts as JSON.
    """
    from ovbridge.data.imagenet_files import write_imagenet_labels

    _report(write_imagenet_labels(images, out, words=words, allow_count_mismatch=allow_count_mismatch), json)


def openimages(
    *,
    annotations: Path,
    out: Path,
    images: Path | None = None,
    image_sizes: Path | None = None,
    split: Literal["validation", "train"] = "validation",
    allow_count_mismatch: bool = False,
    json: bool = False,
) -> None:
    """Join the challenge's CSV files into one COCO-like file with the class hierarchy expanded.

    Args:
        annotations: Folder with the challenge-2019-* files: classes, hierarchy, boxes, image labels.
        out: Folder for oid_challenge_2019_validation_expanded.json.
        images: Folder of the images, for their sizes.
        image_sizes: Instead of --images: CSV with ImageID, Width, Height.
        split: Which part.
        allow_count_mismatch: Go on although there are not 500 classes.
        json: Print the counts as JSON.
    """
    from ovbridge.data.openimages_files import write_openimages

    counts = write_openimages(
        annotations,
        out,
        images=images,
        image_sizes=image_sizes,
        split=split,
        allow_count_mismatch=allow_count_mismatch,
    )
    _report(counts, json)


def objects365(
    *,
    annotations: Path,
    names_fix: Path,
    out: Path,
    images: Path | None = None,
    allow_count_mismatch: bool = False,
    json: bool = False,
) -> None:
    """Correct class names and file names of Objects365.

    Args:
        annotations: zhiyuan_objv2_val.json or zhiyuan_objv2_train.json.
        names_fix: Objects365_names_fix.csv: id, published name, corrected name.
        out: Folder for zhiyuan_objv2_val_names_fixed.json.
        images: Folder with the patch folders: images that are not there are left out.
        allow_count_mismatch: Go on although a full file gives other counts than the published ones.
        json: Print the counts as JSON.
    """
    from ovbridge.data.objects365_files import write_objects365

    _report(
        write_objects365(annotations, names_fix, out, images=images, allow_count_mismatch=allow_count_mismatch), json
    )


def strict(
    *,
    annotations: Path,
    labels: Path,
    out: Path,
    classes: int | None = None,
    seed: int = 0,
    json: bool = False,
) -> None:
    """Draw classes that avoid every novel name, and write boxes and image labels that know only those and base.

    Args:
        annotations: Boxes of the base classes, as 'prepare coco-ovd' or 'prepare lvis-ovd' wrote them.
        labels: Image labels of any classes, as 'prepare imagenet-lvis --words' writes them.
        out: Folder for instances_train_strict.json and image_labels_strict.json.
        classes: How many to draw; by default 5 for each base and novel class.
        seed: Fixes the draw.
        json: Print the counts as JSON.
    """
    from ovbridge.data.strict_files import write_strict

    _report(write_strict(annotations, labels, out, classes=classes, seed=seed), json)


def _report(counts: dict[str, Any], json: bool) -> None:
    from ovbridge.console import stdout

    if json:
        print(json_format.dumps(counts))
        return
    flat = {f"{outer} {k}": v for outer, part in counts.items() if isinstance(part, dict) for k, v in part.items()}
    for name, value in ({k: v for k, v in counts.items() if not isinstance(v, dict)} | flat).items():
        if name != "files":
            stdout.print(f"{name.replace('_', ' ')}: {value}", soft_wrap=True)
    for file in counts["files"]:
        stdout.print(f"written to {file}", soft_wrap=True)
