"""What a run reads: annotations, images, the label store, the text bank; checked before the first step."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_labels import TaggedImage, load_tagged_images
from ovbridge.errors import ConfigError, StoreError
from ovbridge.training.stages import Stage
from ovbridge.vocabulary import TextBank, Vocabulary

if TYPE_CHECKING:
    from ovbridge.label_store import LabelStore


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Where the data are. Relative paths start at `root`, or where the command runs if that is empty."""

    root: str = ""
    """Folder that the other paths are relative to."""
    images: str = "train2017"
    """Folder of the images with boxes."""
    annotations: str = "annotations/instances_train2017_base.json"
    """COCO-format boxes of the base classes; its categories, in id order, are the vocabulary."""
    label_images: str = ""
    """Folder of the images with labels only; read in stages with image labels."""
    label_annotations: str = ""
    """COCO-like JSON of those images, with `pos_category_ids` or captions."""
    store: str = ""
    """Label store with the regions (RKD) and tags (PIS) of these images."""
    text_bank: str = "default"
    """A `.safetensors` text bank, a bare `.npy` [K, D] in vocabulary order, or the name of a bank in the store."""
    text_encoder: str = ""
    """Which text encoder made a bare `.npy`, e.g. "open_clip:ViT-B-32-quickgelu/openai"; kept in the checkpoint."""
    min_tag_score: float = 0.0
    """Pseudo boxes scored this or less are left out; the paper's caption tags use 0.95, its ImageNet boxes 0."""
    max_tags: int | None = None
    """At most so many pseudo boxes an image, the first ones; None takes all. The released code: 32 on captions, 1 on
    ImageNet."""
    novel_boxes: bool = False
    """Allow human boxes of classes whose role is novel: for upper bounds only, nothing is open-vocabulary then."""
    keep_empty: bool = False
    """Train on images without any box too."""
    cache_in_memory: bool = False
    """Keep decoded and resized images in memory."""

    def at(self, path: str) -> Path:
        """`path` from `root`."""
        return Path(self.root) / path

    @property
    def bank_is_file(self) -> bool:
        """Whether `text_bank` names a file, not a bank of the store."""
        return Path(self.text_bank).suffix in (".npy", ".safetensors")


@dataclass(frozen=True, kw_only=True)
class TrainingInputs:
    """Everything a run reads, opened and checked."""

    vocabulary: Vocabulary
    bank: TextBank
    """In the order of `vocabulary`."""
    coco: CocoDataset
    tagged: tuple[TaggedImage, ...]
    """Images with labels only; empty where the stage reads none."""
    store: LabelStore | None

    def origins(self) -> dict[str, Any]:
        """Which teachers made the labels in the store: table → proposer, what it was trained on, encoder."""
        if self.store is None:
            return {}
        manifests = {table: self.store.manifest(table) for table in ("regions", "tags") if table in self.store}
        return {
            table: {
                "proposer": manifest.proposer,
                "proposer_trained_on": manifest.proposer_trained_on,
                "encoder": manifest.encoder,
            }
            for table, manifest in manifests.items()
        }


def required_paths(data: DataConfig, stage: Stage) -> Iterator[tuple[str, str, Path]]:
    """(field, remedy, path) of every file and folder that `stage` reads."""
    yield "data.images", "give the folder that holds the images", data.at(data.images)
    yield "data.annotations", "make it with 'ovbridge prepare coco-ovd'", data.at(data.annotations)
    if stage.image_labels:
        yield "data.label_images", "give the folder of the images with labels", data.at(data.label_images or "?")
        yield "data.label_annotations", "give the JSON with their labels", data.at(data.label_annotations or "?")
    if stage.region_distillation or stage.image_labels or not data.bank_is_file:
        yield "data.store", "make it with 'ovbridge label', then give --store", data.at(data.store or "?")
    if data.bank_is_file:
        yield "data.text_bank", "make it with 'ovbridge label text'", data.at(data.text_bank)


def check_paths(data: DataConfig, stage: Stage) -> None:
    """Raise ConfigError naming the first file or folder that is missing."""
    for field, remedy, path in required_paths(data, stage):
        if not path.exists():
            where = f"{path} does not exist" if path.name != "?" else "is not given"
            raise ConfigError(f"stage {stage.name}: {field} {where}: {remedy}, or --set {field}=...")


def open_inputs(data: DataConfig, stage: Stage, *, with_masks: bool) -> TrainingInputs:
    """Open and check everything that `stage` reads; raises an OVBridgeError naming what is missing or wrong."""
    check_paths(data, stage)
    coco = CocoDataset.load(data.at(data.annotations), with_masks=with_masks, federated=None)
    if not data.novel_boxes:
        _refuse_novel_boxes(coco, data)
    store = _open_store(data, stage)
    tagged: tuple[TaggedImage, ...] = ()
    if stage.image_labels:
        tagged = load_tagged_images(data.at(data.label_annotations), vocabulary=coco.vocabulary).images
    if stage.region_distillation and store is not None:
        boxed = [image.file_name for image in coco.images if data.keep_empty or len(image.boxes_xyxy)]
        _check_regions(store, [*boxed, *(image.file_name for image in tagged)])
    return TrainingInputs(
        vocabulary=coco.vocabulary,
        bank=_load_bank(data, coco.vocabulary, store),
        coco=coco,
        tagged=tagged,
        store=store,
    )


def _refuse_novel_boxes(coco: CocoDataset, data: DataConfig) -> None:
    novel = coco.vocabulary.columns("novel")
    for image in coco.images:
        boxed = [k for k in novel if (image.class_ids == k).any()]
        if boxed:
            raise ConfigError(
                f"{data.at(data.annotations)} boxes novel classes (first: {coco.vocabulary.names[boxed[0]]!r} in "
                f"{image.file_name}): train on the file that 'ovbridge prepare' made of it, or, for an upper bound, "
                "--set data.novel_boxes=true"
            )


def fingerprint(path: Path) -> str:
    """sha256 of a file's bytes; raises ConfigError where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}): give an existing file") from None


def _open_store(data: DataConfig, stage: Stage) -> LabelStore | None:
    if not (stage.region_distillation or stage.image_labels) and data.bank_is_file:
        return None
    from ovbridge.label_store import LabelStore  # here: Lance takes a second to import

    return LabelStore.open(data.at(data.store))


def _load_bank(data: DataConfig, vocabulary: Vocabulary, store: LabelStore | None) -> TextBank:
    path = data.at(data.text_bank)
    if path.suffix == ".npy":
        return TextBank.from_npy(path, vocabulary.names, encoder=data.text_encoder or f"npy:{path.name}")
    if data.bank_is_file:
        return TextBank.load(path).select(vocabulary.names)
    assert store is not None
    return store.text_bank(data.text_bank).select(vocabulary.names)


def _check_regions(store: LabelStore, keys: Sequence[str]) -> None:
    labelled = store.done_keys("regions") - store.failures("regions").keys()
    absent = [key for key in keys if key not in labelled]
    if absent:
        raise StoreError(
            f"{store.path} has no regions of {len(absent)} of the {len(keys)} training images (first: {absent[0]}): "
            "run 'ovbridge label regions' on their folder, with --retry-failed where it failed on them before "
            "('ovbridge label status' names the causes)"
        )
