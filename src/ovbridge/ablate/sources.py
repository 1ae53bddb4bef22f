"""Where the data of an ablation lie, and the label stores that its runs need, made when a run first asks."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ovbridge.ablate.second_world import write_second_world
from ovbridge.ablate.self_training import LOWEST_SCORE, DetectorProposer
from ovbridge.ablate.settings import AblateSettings, WorldSettings
from ovbridge.ablate.strict_world import write_strict_labels
from ovbridge.ablate.suite import LABELLED_BY, Labels, Run
from ovbridge.config_tree import apply_overrides
from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_labels import load_tagged_images
from ovbridge.data.ovd_files import TRAIN_FILE, VAL_FILE
from ovbridge.data.strict_files import LABELS_FILE
from ovbridge.data.strict_files import TRAIN_FILE as STRICT_TRAIN_FILE
from ovbridge.errors import ConfigError
from ovbridge.evaluation import Protocol
from ovbridge.images import read_image
from ovbridge.label_run import TeacherChoice, load_proposer
from ovbridge.label_store import LabelStore, save_text_bank
from ovbridge.label_store.lock import locked
from ovbridge.labeling.labellers import Labeller, RegionLabeller, TagLabeller
from ovbridge.labeling.run import label_images
from ovbridge.labeling.sources import default_threshold, names_by_image
from ovbridge.recipes import recipe_named
from ovbridge.recipes.world import TAG_SIZE_WEIGHT
from ovbridge.teachers.clip import load_clip
from ovbridge.teachers.largest_box import LargestBoxProposer
from ovbridge.teachers.protocol import AnyProposer, StoredProposer
from ovbridge.training.inputs import DataConfig
from ovbridge.world_data import paint_ovd_world

_VAL = {
    "coco": (f"annotations/{VAL_FILE}", "val2017"),
    "lvis": ("annotations/lvis_v1_val.json", "."),
}


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What a run is evaluated on."""

    annotations: Path
    images: Path
    protocol: Protocol
    is_federated: bool = False
    """Whether the annotations are LVIS's."""


class Sources:
    """Data and labels of one ablation folder."""

    def __init__(self, out: Path, settings: AblateSettings) -> None:
        self._out, self._settings = out, settings
        self._is_world = settings.family == "world"
        if not self._is_world and not (settings.data and settings.store):
            raise ConfigError(f"suites of {settings.family} need --data and --store: the full data and its labels")

    @property
    def world(self) -> Path:
        """The built-in world."""
        return self._out / "world"

    def check(self, runs: Sequence[Run]) -> None:
        """Raise ConfigError for whatever a run of a full-scale family will ask for and not find, before any starts."""
        if self._is_world:
            return
        s = self._settings
        made = {run.labels for run in runs} & {"rpn", "largest"}
        if made and s.clip == "builtin":
            raise ConfigError(f"labels {min(made)!r} are made on the way: give the CLIP of the store as --clip")
        if "largest" in made and (s.proposer == "builtin" or s.proposer.startswith(("boxes:", "rpn:"))):
            raise ConfigError(f"suite ils asks a proposer for all objects, --proposer {s.proposer} cannot do it here")
        # Options that are missing first, then the files that the others name.
        for run in runs:
            self._data(run.labels)
        targets = [self.evaluation(run) for run in runs]
        for run, target in zip(runs, targets, strict=True):
            _require(target.annotations, "annotations to evaluate on: --val-annotations or --second-annotations")
            _require(target.images, "images to evaluate on: --val-images-folder or --second-images")
            if run.is_trained:
                self._check_training(run)

    def _check_training(self, run: Run) -> None:
        recipe = recipe_named(self._settings.family, run.stage)
        data = apply_overrides(
            replace(recipe, data=self._data(run.labels)), (*self._settings.overrides, *run.overrides)
        ).data
        _require(data.at(data.annotations), "boxes to train on: --data")
        _require(data.at(data.images), "images to train on: --data")
        if recipe.stage.image_labels:
            _require(data.at(data.label_annotations), "image labels to train on: --data or --strict-data")
            _require(data.at(data.label_images), "images with labels: --data")
        if run.labels in ("default", "strict") and recipe.stage.name != "base":
            _require(Path(data.store), "label store: --store or --strict-store")

    def prepare(self) -> None:
        """Paint and label the built-in world; nothing for a full-scale family, whose data are there already."""
        if not self._is_world:
            return
        world = self._settings.world
        with self._alone(self.world):
            self._paint(world)
        self._label(self._out / "labels", self._data("default"), regions=True, tags=True)

    @staticmethod
    def _alone(folder: Path) -> AbstractContextManager[None]:
        """One process makes a folder; the others wait and find it."""
        return locked(folder.with_name(folder.name + ".lock"))

    def _paint(self, world: WorldSettings) -> None:
        paint_ovd_world(
            self.world,
            train=world.train_images,
            val=world.val_images,
            image_labels_per_class=world.image_labels_per_class,
            seed=world.seed,
        )

    def training_data(self, run: Run, seed: int, checkpoint_of: Callable[[str], Path]) -> DataConfig:
        """What a run trains on; `checkpoint_of` gives the checkpoints of its seed, for labels that they make."""
        data = self._data(run.labels)
        if run.labels == "rpn":
            store = self._out / f"seed{seed}" / "labels_rpn"
            base = checkpoint_of(LABELLED_BY["rpn"])
            self._label(store, data, regions=True, tags=False, proposer=f"rpn:{base}")
        elif run.labels == "self":
            store = self._out / f"seed{seed}" / "labels_self"
            self._label_by_detector(store, data, checkpoint_of(LABELLED_BY["self"]))
        elif run.labels == "largest":
            store = self._out / "labels_largest"
            self._label(store, data, regions=False, tags=True, largest=True)
        elif run.labels == "strict" and self._is_world:
            store = self._out / "labels_strict"
            self._label(store, data, regions=True, tags=True)
        else:
            store = Path(data.store)
        return replace(data, store=str(store.absolute()))

    def evaluation(self, run: Run) -> Evaluation:
        """What a run is evaluated on; raises ConfigError where a second data set is wanted and not given."""
        s = self._settings
        if run.data == "second" and self._is_world:
            folder = self._out / "second_world"
            with self._alone(folder):
                annotations, images = write_second_world(folder, s.world)
            return Evaluation(annotations=annotations, images=images, protocol="ov-coco")
        if run.data == "second":
            if not (s.second_annotations and s.second_images):
                raise ConfigError("suite cross needs --second-annotations and --second-images: the other data set")
            protocol: Protocol = "objects365" if "objv2" in s.second_annotations else "coco"
            if "oid_" in s.second_annotations:
                protocol = "openimages"
            return Evaluation(annotations=Path(s.second_annotations), images=Path(s.second_images), protocol=protocol)
        if self._is_world:
            folder = self.world / "annotations"
            own: Protocol = "strict" if run.labels == "strict" else "ov-coco"
            return Evaluation(annotations=folder / VAL_FILE, images=self.world / "val2017", protocol=own)
        annotations_name, images_name = _VAL[s.family]
        usual: Protocol = "ov-lvis" if s.family == "lvis" else "ov-coco"
        return Evaluation(
            annotations=Path(s.val_annotations) if s.val_annotations else Path(s.data) / annotations_name,
            images=Path(s.val_images) if s.val_images else Path(s.data) / images_name,
            protocol="strict" if run.labels == "strict" else usual,
            is_federated=s.family == "lvis",
        )

    def _data(self, labels: Labels) -> DataConfig:
        s = self._settings
        recipe = recipe_named(s.family, "base").data
        if self._is_world:
            own = replace(recipe, root=str(self.world.absolute()), store=str((self._out / "labels").absolute()))
        else:
            own = replace(recipe, root=str(Path(s.data).absolute()), store=str(Path(s.store).absolute()))
        if labels != "strict":
            return own
        if self._is_world:
            folder = self._out / "strict"
            with self._alone(folder):
                write_strict_labels(folder, self.world / "annotations" / TRAIN_FILE, s.world)
            images = self._out / "strict" / "image_labels"
            return replace(
                own,
                annotations=str((folder / STRICT_TRAIN_FILE).absolute()),
                label_annotations=str((folder / LABELS_FILE).absolute()),
                label_images=str(images.absolute()),
                store=str((self._out / "labels_strict").absolute()),
            )
        if not (s.strict_data and s.strict_store):
            raise ConfigError(f"suite strict of {s.family} needs --strict-data and --strict-store")
        return replace(
            own,
            annotations=str((Path(s.strict_data) / STRICT_TRAIN_FILE).absolute()),
            label_annotations=str((Path(s.strict_data) / LABELS_FILE).absolute()),
            store=str(Path(s.strict_store).absolute()),
        )

    def _label_by_detector(self, store: Path, data: DataConfig, checkpoint: Path) -> None:
        """The regions and text of the default store, and tags where a trained detector finds them."""
        with self._unfinished(store) as done:
            if done is not None:
                self._fill_by_detector(store, data, checkpoint)
                done.touch()

    def _fill_by_detector(self, store: Path, data: DataConfig, checkpoint: Path) -> None:
        default = Path(data.store)
        shutil.copytree(
            default, store, dirs_exist_ok=True, ignore=shutil.ignore_patterns("tags*", "complete", "*.lock")
        )
        trained_on = LabelStore.open(default).manifest("tags").proposer_trained_on
        vocabulary = CocoDataset.load(data.at(data.annotations), federated=None).vocabulary
        names_of = names_by_image(load_tagged_images(data.at(data.label_annotations), vocabulary=vocabulary))
        labeller = TagLabeller(
            proposer=DetectorProposer(checkpoint, trained_on), names_of=names_of, threshold=LOWEST_SCORE
        )
        label_images(store, data.at(data.label_images), list(names_of), labeller, read_image=read_image)

    def _label(
        self,
        store: Path,
        data: DataConfig,
        *,
        regions: bool,
        tags: bool,
        proposer: str | None = None,
        largest: bool = False,
    ) -> None:
        """Fill a store with what training on `data` reads; what is there already is left alone."""
        with self._unfinished(store) as done:
            if done is not None:
                self._fill(store, data, regions=regions, tags=tags, proposer=proposer, largest=largest)
                done.touch()

    @contextmanager
    def _unfinished(self, store: Path) -> Iterator[Path | None]:
        """Alone at a store that is not complete: the mark to leave once it is; None for one that is."""
        done = store / "complete"
        if done.exists():
            yield None
            return
        with self._alone(store):
            # Another process may have completed it meanwhile.
            yield None if done.exists() else done

    def _fill(
        self, store: Path, data: DataConfig, *, regions: bool, tags: bool, proposer: str | None, largest: bool
    ) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        choice = TeacherChoice(proposer=proposer or self._settings.proposer)
        teacher: AnyProposer = load_proposer(choice, device, for_names=tags)
        if largest:
            if isinstance(teacher, StoredProposer):
                raise ConfigError(f"suite ils asks a proposer for all objects; {choice.proposer} has stored boxes only")
            teacher = LargestBoxProposer(teacher)
        clip = load_clip(self._settings.clip, device)
        coco = CocoDataset.load(data.at(data.annotations), federated=None)
        tagged = load_tagged_images(data.at(data.label_annotations), vocabulary=coco.vocabulary)
        save_text_bank(store, clip.embed_names(coco.vocabulary.names))
        boxed = [image.file_name for image in coco.images if data.keep_empty or len(image.boxes_xyxy)]
        names_of = names_by_image(tagged)

        def label(folder: str, keys: list[str], labeller: Labeller) -> None:
            label_images(store, data.at(folder), keys, labeller, read_image=read_image)

        if regions:
            distilled = RegionLabeller(proposer=teacher, encoder=clip)
            label(data.images, boxed, distilled)
        if regions and tags:
            label(data.label_images, list(names_of), distilled)
        if tags:
            # A share of the image is no confidence, so nothing is cut off where the largest box is taken.
            threshold = 0.0 if largest else default_threshold(tagged)
            label(
                data.label_images,
                list(names_of),
                TagLabeller(
                    proposer=teacher,
                    names_of=names_of,
                    threshold=threshold,
                    size_weight=TAG_SIZE_WEIGHT if self._is_world and not largest else 0.0,
                ),
            )


def _require(path: Path, what: str) -> None:
    if not path.exists():
        raise ConfigError(f"{path} is not there; it holds the {what}")
