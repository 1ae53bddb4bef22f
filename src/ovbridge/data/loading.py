"""From files to batches of `TrainingImage`, the same ones again after a restart and with any number of workers."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from ovbridge.data import sampling
from ovbridge.data.coco import CocoDataset
from ovbridge.data.image_labels import TaggedImage
from ovbridge.data.image_reading import AnnotatedPixels, read_annotated
from ovbridge.data.masks import decode_masks
from ovbridge.data.transforms import TrainTransform
from ovbridge.errors import ConfigError, DataError, OVBridgeError
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage

SourceKind = Literal["det", "cls"]
"""det: images with human boxes. cls: images with labels only."""

_KINDS: tuple[SourceKind, SourceKind] = ("det", "cls")


class RegionReader(Protocol):
    """Where RKD targets come from; a label store is one. Must survive pickling if workers are used."""

    def regions(self, image_keys: Sequence[str]) -> Mapping[str, RegionTargets]:
        """Targets by image key, boxes in pixels of the upright image; keys without targets are absent."""
        ...


class SampleSource(Protocol):
    """What batches are made of; must survive pickling if workers are used."""

    is_wide: np.ndarray
    """[n] bool, whether each image is wider than high."""

    def __len__(self) -> int:
        """Number of images."""
        ...

    def sample(self, index: int, generator: torch.Generator) -> TrainingImage:
        """Read and transform one image."""
        ...


class BoxSource(SampleSource, Protocol):
    """A source that knows how often each image should be seen."""

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """[n] repeat factors of the images."""
        ...


class MemoryRegions:
    """A `RegionReader` that was read once, for sets that fit into memory."""

    def __init__(self, reader: RegionReader, image_keys: Sequence[str]) -> None:
        self._regions = dict(reader.regions(image_keys))

    def regions(self, image_keys: Sequence[str]) -> Mapping[str, RegionTargets]:
        """The stored targets of these images."""
        return {key: self._regions[key] for key in image_keys if key in self._regions}


def _region_targets(reader: RegionReader | None, key: str, read: AnnotatedPixels) -> RegionTargets | None:
    if reader is None:
        return None
    found = reader.regions([key]).get(key)
    if found is None:
        raise DataError(f"the label store has no regions of image {key!r}: run 'ovbridge label regions' on its folder")
    return replace(found, boxes_xyxy=read.from_upright(found.boxes_xyxy))


class DetectionDataset:
    """Images with human boxes (D_det); images without any box are left out unless `keep_empty`."""

    def __init__(
        self,
        coco: CocoDataset,
        image_dir: Path,
        transform: TrainTransform,
        *,
        regions: RegionReader | None = None,
        keep_empty: bool = False,
    ) -> None:
        self.vocabulary = coco.vocabulary
        self.images = tuple(i for i in coco.images if keep_empty or len(i.boxes_xyxy))
        if not self.images:
            raise DataError(f"no image of {image_dir} has a box to train on: check the annotation file")
        self._image_dir, self._transform, self._regions = Path(image_dir), transform, regions
        self._with_masks = any(i.segmentations for i in coco.images)
        self.is_wide = np.array([i.width > i.height for i in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def repeat_factors(self, threshold: float) -> np.ndarray:
        """[n] repeat factors of the images, see `sampling.repeat_factors`."""
        return sampling.repeat_factors([i.class_ids for i in self.images], threshold)

    def sample(self, index: int, generator: torch.Generator) -> TrainingImage:
        """Read, decode and transform one image; raises DataError naming a missing or broken file."""
        image = self.images[index]
        read = read_annotated(self._image_dir / image.file_name, (image.height, image.width))
        masks = None
        if self._with_masks:
            # None of an image without boxes, rather than unknown ones, which would leave the batch without a mask loss.
            masks = torch.from_numpy(decode_masks(image.segmentations, image.height, image.width))
        return self._transform(
            read.pixels,
            image_id=image.image_id,
            generator=generator,
            boxes=BoxLabels(
                boxes_xyxy=torch.from_numpy(image.boxes_xyxy),
                class_ids=torch.from_numpy(image.class_ids),
                masks=masks,
            ),
            regions=_region_targets(self._regions, image.file_name, read),
        )


class ImageLabelDataset:
    """Images with labels only (D_cls), each label with its pseudo box.

    Labels scored at or below `min_score` are dropped, those after the first `max_labels`, and images that keep none.
    """

    def __init__(
        self,
        images: Sequence[TaggedImage],
        image_dir: Path,
        transform: TrainTransform,
        *,
        tags: Mapping[str, ImageLabels],
        regions: RegionReader | None = None,
        min_score: float = 0.0,
        max_labels: int | None = None,
    ) -> None:
        if max_labels is not None and max_labels < 1:
            raise ConfigError(f"data.max_tags is {max_labels}: give at least 1, or null for all")
        self._labels = {key: _confident(labels, min_score, max_labels) for key, labels in tags.items()}
        self.images = tuple(i for i in images if len(self._labels.get(i.file_name, ())))
        if not self.images:
            raise DataError(
                f"none of {len(images)} tagged images has a pseudo box scored above {min_score}: "
                "run 'ovbridge label tags' on them, or lower the threshold"
            )
        self._image_dir, self._transform, self._regions = Path(image_dir), transform, regions
        self.is_wide = np.array([i.width > i.height for i in self.images])

    def __len__(self) -> int:
        return len(self.images)

    def sample(self, index: int, generator: torch.Generator) -> TrainingImage:
        """Read, decode and transform one image; raises DataError naming a missing or broken file."""
        image = self.images[index]
        read = read_annotated(self._image_dir / image.file_name, (image.height, image.width))
        labels = self._labels[image.file_name]
        return self._transform(
            read.pixels,
            image_id=image.image_id,
            generator=generator,
            labels=replace(labels, boxes_xyxy=read.from_upright(labels.boxes_xyxy)),
            regions=_region_targets(self._regions, image.file_name, read),
        )


def _confident(labels: ImageLabels, min_score: float, max_labels: int | None) -> ImageLabels:
    keep = (labels.scores > min_score).nonzero().flatten()[:max_labels]
    return ImageLabels(boxes_xyxy=labels.boxes_xyxy[keep], class_ids=labels.class_ids[keep], scores=labels.scores[keep])


def sample_generator(seed: int, draw: int) -> torch.Generator:
    """The randomness of one drawn sample: depends on nothing but the seed and the number of the draw."""
    state = np.random.SeedSequence([seed, draw]).generate_state(2, dtype=np.uint32)
    return torch.Generator().manual_seed(int(state[0]) << 31 | int(state[1]) >> 1)


_Key = tuple[int, int, int]  # source, index within it, number of the draw


class _Samples(Dataset[TrainingImage | OVBridgeError]):
    """A map from key to sample that hands errors over instead of raising, so a worker's stay one line."""

    def __init__(self, sources: Sequence[SampleSource], seed: int) -> None:
        self._sources, self._seed = sources, seed

    def __getitem__(self, key: _Key) -> TrainingImage | OVBridgeError:
        source, index, draw = key
        try:
            return self._sources[source].sample(index, sample_generator(self._seed, draw))
        except OVBridgeError as error:
            return error


class _KeyBatches:
    """Iterable over the keys of batches from `start` on (a DataLoader's batch sampler)."""

    def __init__(self, owner: MixedBatches, start: int) -> None:
        self._owner, self._start = owner, start

    def __iter__(self) -> Iterator[list[_Key]]:
        return self._owner.keys(self._start)


class MixedBatches:
    """Endless batches, each purely of one kind: `("det" | "cls", list[TrainingImage])`.

    With two sources, images are drawn with replacement so that det : cls images stand in `ratio`; 1 : 4 with
    batches of 2 and 8 (the paper) gives equally many batches of either kind. With one source, epochs are shuffled
    without replacement. `position` counts the batches handed out; restoring it continues with the very next one.

    Args:
        det: Images with boxes, or None.
        cls: Images with labels, or None.
        det_batch: Images a det batch, over all ranks.
        cls_batch: Images a cls batch, over all ranks.
        ratio: det : cls images.
        seed: Fixes the order and every augmentation.
        group_by_shape: Batch wide images with wide ones and high ones with high ones (less padding).
        repeat_threshold: LVIS repeat-factor sampling of `det` (0.001 in the paper), or None.
        rank: Of `world_size` processes this one; each takes every world_size-th image of a batch.
        world_size: Number of processes.
        workers: Loader processes (spawned); 0 loads in the calling process.
    """

    def __init__(
        self,
        det: BoxSource | None,
        cls: SampleSource | None,
        *,
        det_batch: int = 2,
        cls_batch: int = 8,
        ratio: tuple[float, float] = (1, 4),
        seed: int,
        group_by_shape: bool = True,
        repeat_threshold: float | None = None,
        rank: int = 0,
        world_size: int = 1,
        workers: int = 0,
    ) -> None:
        present = [(kind, s) for kind, s in zip(_KINDS, (det, cls), strict=True) if s is not None]
        if not present:
            raise ConfigError("there is nothing to train on: give images with boxes, images with labels, or both")
        self._kinds = [kind for kind, _ in present]
        self._sources: list[SampleSource] = [source for _, source in present]
        sizes = {"det": det_batch, "cls": cls_batch}
        self._batch_sizes = [sizes[kind] for kind in self._kinds]
        for kind, size in zip(self._kinds, self._batch_sizes, strict=True):
            if size < 1 or size % world_size:
                raise ConfigError(f"{kind} batches of {size} images cannot be shared by {world_size} processes")
        factors = [np.ones(len(source)) for source in self._sources]
        if det is not None and repeat_threshold is not None:
            factors[0] = det.repeat_factors(repeat_threshold)
        self._factors = factors
        self._ratio = ratio
        self._seed, self._rank, self._world_size, self._workers = seed, rank, world_size, workers
        self._group_by_shape, self._repeat_threshold = group_by_shape, repeat_threshold
        self.position = 0

    def __iter__(self) -> Iterator[tuple[SourceKind, list[TrainingImage]]]:
        """Yield from `position` on, without end; raises DataError for an image that cannot be used."""
        samples = _Samples(self._sources, self._seed)
        loaded: Iterator[list[TrainingImage | OVBridgeError]]
        if self._workers:
            loaded = iter(
                DataLoader(
                    samples,
                    batch_sampler=_KeyBatches(self, self.position),
                    num_workers=self._workers,
                    collate_fn=list,
                    multiprocessing_context="spawn",
                    # Its own source: the loader's base seed must not advance the global one.
                    generator=torch.Generator().manual_seed(self._seed),
                )
            )
        else:
            loaded = ([samples[key] for key in keys] for keys in self.keys(self.position))
        for keys, batch in zip(self.keys(self.position), loaded, strict=False):
            good: list[TrainingImage] = []
            for item in batch:
                if isinstance(item, OVBridgeError):
                    raise item
                good.append(item)
            self.position += 1
            yield self._kinds[keys[0][0]], good

    def upcoming(self) -> str:
        """The images of the next batch, for people: file names where the sources have them."""
        keys = next(self.keys(self.position))
        images = [getattr(self._sources[source], "images", None) for source, _, _ in keys]
        names = [
            str(getattr(known[index], "file_name", index)) if known is not None else str(index)
            for known, (_, index, _) in zip(images, keys, strict=True)
        ]
        return f"batch {self.position} ({', '.join(names)})"

    def keys(self, start: int = 0) -> Iterator[list[_Key]]:
        """(source, index, draw) of this rank's share of every batch from number `start` on."""
        offsets = np.cumsum([0] + [len(s) for s in self._sources]).tolist()
        source_of = np.repeat(np.arange(len(self._sources)), [len(s) for s in self._sources]).tolist()
        wide = np.concatenate([s.is_wide for s in self._sources]).tolist()
        stream = sampling.batches(
            self._index_stream(),
            lambda index: (source_of[index], self._group_by_shape and wide[index]),
            self._batch_sizes,
        )
        for batch in itertools.islice(stream, start, None):
            source = source_of[batch[0][0]]
            mine = batch[self._rank :: self._world_size]
            yield [(source, index - offsets[source], draw) for index, draw in mine]

    def _index_stream(self) -> Iterator[int]:
        if len(self._sources) == 1:
            return sampling.shuffled_epochs(self._factors[0], self._seed)
        return sampling.weighted_draws(sampling.source_weights(self._factors, self._ratio), self._seed)

    def _identity(self) -> dict[str, Any]:
        return {
            "seed": self._seed,
            "kinds": list(self._kinds),
            "images": [len(s) for s in self._sources],
            "batch_sizes": list(self._batch_sizes),
            "ratio": list(self._ratio),
            "group_by_shape": self._group_by_shape,
            "repeat_threshold": self._repeat_threshold,
        }

    def state_dict(self) -> dict[str, Any]:
        """Where the stream stands, and what it is a stream of."""
        return {"position": self.position, **self._identity()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where `state` was taken; raises ConfigError if it belongs to another data set or batch size."""
        for key, value in self._identity().items():
            if state.get(key) != value:
                raise ConfigError(
                    f"the checkpoint's data order has {key} {state.get(key)!r}, this run {value!r}: "
                    "resume with the same data and batches, or start in a new output folder"
                )
        self.position = int(state["position"])
