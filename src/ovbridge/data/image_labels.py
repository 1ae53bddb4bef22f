"""Images that have labels but no boxes: from captions, from label lists in a COCO-like file, from folders."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ovbridge.data.annotation_check import check_annotations, image_file_name, read_json
from ovbridge.data.caption_tags import Tagger, TagRule, make_tagger
from ovbridge.data.coco_synonyms import COCO_SYNONYMS
from ovbridge.data.image_reading import image_hw
from ovbridge.data.splits import vocabulary_of
from ovbridge.errors import DataError
from ovbridge.images import SUFFIXES
from ovbridge.vocabulary import Vocabulary
from ovbridge.vocabulary.coco_names import COCO_OVD


@dataclass(frozen=True, kw_only=True)
class TaggedImage:
    """One image and the classes that are said to be in it."""

    image_id: int
    file_name: str
    """Relative to the images folder; also the key of the image in a label store."""
    height: int
    width: int
    class_ids: tuple[int, ...]
    """Columns of the vocabulary, ascending."""
    captions: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TaggedImages:
    """Images with labels, and the vocabulary of their class ids."""

    vocabulary: Vocabulary
    images: tuple[TaggedImage, ...]

    def __len__(self) -> int:
        return len(self.images)

    def with_labels(self) -> TaggedImages:
        """Only the images that have at least one label."""
        return TaggedImages(vocabulary=self.vocabulary, images=tuple(i for i in self.images if i.class_ids))

    def image_counts(self) -> list[int]:
        """[K] in how many images each class is named."""
        counts = [0] * len(self.vocabulary)
        for image in self.images:
            for column in image.class_ids:
                counts[column] += 1
        return counts


def synonyms_from_categories(categories: Sequence[Mapping[str, Any]]) -> dict[str, tuple[str, ...]]:
    """Class name → its `synonyms` key; COCO names without one go by the LVIS synonyms."""
    found: dict[str, tuple[str, ...]] = {}
    for category in categories:
        name = str(category["name"])
        own = category.get("synonyms")
        found[name] = tuple(own) if own else COCO_SYNONYMS.get(name, ())
    return found


def synonyms_from_lvis(cat_info: Path, coco_to_synset: Path) -> dict[str, tuple[str, ...]]:
    """COCO class name → synonyms of the LVIS category with the same synset.

    Args:
        cat_info: LVIS categories as JSON records with `synset` and `synonyms`.
        coco_to_synset: LVIS's `coco_to_synset.json`.
    """
    try:
        of_synset = {c["synset"]: tuple(c["synonyms"]) for c in read_json(cat_info)}
        return {
            name: of_synset.get(record["synset"]) or COCO_SYNONYMS.get(name, ())
            for name, record in read_json(coco_to_synset).items()
        }
    except (KeyError, TypeError, AttributeError) as error:
        raise DataError(
            f"{cat_info} and {coco_to_synset} do not give LVIS synonyms ({error!r}): records need synset and synonyms"
        ) from None


def load_tagged_images(
    annotations: Path,
    *,
    vocabulary: Vocabulary | None = None,
    synonyms: Mapping[str, Sequence[str]] | None = None,
    rule: TagRule = "words",
) -> TaggedImages:
    """Read image-level labels from any of the files that carry them; images without labels are kept.

    The file's images carry `pos_category_ids` (ids of its categories), or `captions`, or it is a COCO captions file.
    A captions file has no categories: its vocabulary is that of `vocabulary`, else of the instances file beside it
    (captions_X.json → instances_X.json), else OV-COCO's.

    Args:
        annotations: The JSON file.
        vocabulary: The vocabulary of the class ids returned; labels are matched to it by name.
        synonyms: Class name → synonyms for captions, by default the categories' own, for COCO names LVIS's.
        rule: How captions become labels.

    Raises:
        DataError: The file carries neither labels nor captions, or a label is not a category of it.
    """
    annotations = Path(annotations)
    payload = read_json(annotations)
    check_annotations(payload, str(annotations), boxes=False, federated=None)
    if any("pos_category_ids" in image for image in payload["images"]):
        return _from_category_ids(payload, annotations, vocabulary)
    captions = _captions_of(payload, annotations)
    categories = payload.get("categories") or _categories_beside(annotations)
    if vocabulary is None:
        vocabulary = vocabulary_of(categories, str(annotations)) if categories else COCO_OVD
    if synonyms is None:
        synonyms = synonyms_from_categories(categories or [{"name": name} for name in vocabulary.names])
    tag = make_tagger(vocabulary.names, synonyms, rule)
    images = tuple(_tagged(record, captions.get(record["id"], ()), tag) for record in payload["images"])
    return TaggedImages(vocabulary=vocabulary, images=images)


def tagged_folders(root: Path, vocabulary: Vocabulary) -> TaggedImages:
    """One folder a class, named like the class with `_` for spaces; ids count up in sorted order from 1.

    Raises DataError for a folder that is no class, and where there is no image.
    """
    root = Path(root)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder: give a folder with one subfolder a class")
    column = {name.replace(" ", "_"): k for k, name in enumerate(vocabulary.names)}
    images: list[TaggedImage] = []
    for folder in sorted(p for p in root.iterdir() if p.is_dir()):
        if folder.name not in column:
            raise DataError(f"folder {folder} is named after no class of the vocabulary: rename or remove it")
        for path in sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES):
            height, width = image_hw(path)
            images.append(
                TaggedImage(
                    image_id=len(images) + 1,
                    file_name=f"{folder.name}/{path.name}",
                    height=height,
                    width=width,
                    class_ids=(column[folder.name],),
                )
            )
    if not images:
        raise DataError(f"{root} holds no image in a class folder: expected {root}/CLASS_NAME/*.jpg")
    return TaggedImages(vocabulary=vocabulary, images=tuple(images))


def _from_category_ids(payload: dict[str, Any], source: Path, vocabulary: Vocabulary | None) -> TaggedImages:
    own = vocabulary_of(payload["categories"], str(source))
    vocabulary = vocabulary or own
    name_of = dict(zip(own.category_ids, own.names, strict=True))
    column = {name: k for k, name in enumerate(vocabulary.names)}
    images = []
    for record in payload["images"]:
        names = [name_of[c] for c in record.get("pos_category_ids", ())]
        absent = [n for n in names if n not in column]
        if absent:
            raise DataError(f"{source}: image {record['id']} has label {absent[0]!r}, which is not in the vocabulary")
        images.append(_tagged_as(record, tuple(sorted({column[n] for n in names})), record.get("captions", ())))
    return TaggedImages(vocabulary=vocabulary, images=tuple(images))


def _captions_of(payload: dict[str, Any], source: Path) -> dict[int, list[str]]:
    captions: defaultdict[int, list[str]] = defaultdict(list)
    for record in payload["images"]:
        captions[record["id"]].extend(record.get("captions", ()))
    for annotation in payload.get("annotations", ()):
        if "caption" not in annotation:
            continue
        if annotation.get("image_id") not in captions:
            raise DataError(f"{source}: caption {annotation.get('id')} belongs to an image that is not in 'images'")
        captions[annotation["image_id"]].append(annotation["caption"])
    if not any(captions.values()):
        raise DataError(
            f"{source}: neither captions nor pos_category_ids: give a captions file or one that 'prepare' made"
        )
    return captions


def _categories_beside(captions_file: Path) -> list[dict[str, Any]]:
    if not captions_file.name.startswith("captions_"):
        return []
    beside = captions_file.with_name("instances_" + captions_file.name.removeprefix("captions_"))
    return read_categories(beside) if beside.is_file() else []


def read_categories(path: Path) -> list[dict[str, Any]]:
    """The checked categories of a file, whatever else is in it; raises DataError with the first fault of theirs."""
    payload = read_json(path)
    alone = {**payload, "images": [], "annotations": []} if isinstance(payload, dict) else payload
    check_annotations(alone, str(path), boxes=False, federated=None)
    return list(payload.get("categories", ()))


def _tagged(record: dict[str, Any], captions: Sequence[str], tag: Tagger) -> TaggedImage:
    return _tagged_as(record, tag(captions), captions)


def _tagged_as(record: dict[str, Any], class_ids: tuple[int, ...], captions: Sequence[str]) -> TaggedImage:
    file_name = image_file_name(record)
    assert file_name is not None
    return TaggedImage(
        image_id=record["id"],
        file_name=file_name,
        height=int(record["height"]),
        width=int(record["width"]),
        class_ids=class_ids,
        captions=tuple(captions),
    )
