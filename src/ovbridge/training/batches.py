"""The batches of a run: boxed images, and images with labels only, each through its own transform."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

from ovbridge.data.loading import DetectionDataset, ImageLabelDataset, MixedBatches
from ovbridge.data.transforms import TrainTransform
from ovbridge.errors import ConfigError
from ovbridge.ranges import COUNT, NOT_NEGATIVE, SEED, require_ranges
from ovbridge.training.image_cache import CachedImages
from ovbridge.training.inputs import DataConfig, TrainingInputs
from ovbridge.training.stages import Stage


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Sizes and mix of the batches, and what happens to an image on its way in."""

    det: int = 16
    """Boxed images a step."""
    cls: int = 64
    """Images with labels only a step."""
    ratio: tuple[float, float] = (1.0, 4.0)
    """Boxed images : images with labels only; with batches in the same ratio, equally many steps of either."""
    det_transform: TrainTransform = field(default_factory=TrainTransform)
    """Resize and flip of boxed images."""
    cls_transform: TrainTransform = field(default_factory=lambda: TrainTransform(short_sides=(400,), max_long_side=667))
    """Resize and flip of images with labels only."""
    group_by_shape: bool = True
    """Batch wide images with wide ones and tall ones with tall ones, to pad less."""
    repeat_threshold: float | None = None
    """Repeat-factor sampling of boxed images (LVIS: 0.001); None samples evenly."""
    workers: int = 0
    """Processes that load images; 0 loads in a thread of this one."""

    def __post_init__(self) -> None:
        require_ranges(
            self,
            "batches.",
            det=COUNT,
            cls=COUNT,
            ratio=NOT_NEGATIVE,
            repeat_threshold=NOT_NEGATIVE,
            workers=NOT_NEGATIVE,
        )
        if not sum(self.ratio):
            raise ConfigError("batches.ratio is 0,0: at least one of the two must be above 0")


def build_batches(
    inputs: TrainingInputs,
    data: DataConfig,
    stage: Stage,
    config: BatchConfig,
    *,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
) -> MixedBatches:
    """The endless batches of `stage`, of which this process takes every `world_size`-th image.

    Raises an OVBridgeError where the data do not suffice, or a batch cannot be shared evenly.
    """
    if seed not in SEED:
        raise ConfigError(f"seed is {seed}: it must be {SEED}")
    regions = inputs.store if stage.region_distillation else None
    keep = data.cache_in_memory
    det = DetectionDataset(
        inputs.coco,
        data.at(data.images),
        _resize_only(config.det_transform) if keep else config.det_transform,
        regions=regions,
        keep_empty=data.keep_empty,
    )
    cls = None
    if stage.image_labels:
        assert inputs.store is not None
        keys = [image.file_name for image in inputs.tagged]
        cls = ImageLabelDataset(
            inputs.tagged,
            data.at(data.label_images),
            _resize_only(config.cls_transform) if keep else config.cls_transform,
            tags=inputs.store.tags(keys, inputs.vocabulary, min_score=data.min_tag_score),
            regions=regions,
            min_score=data.min_tag_score,
            max_labels=data.max_tags,
        )
    if keep:
        # CachedImages offers all that MixedBatches asks of a data set.
        det = cast(DetectionDataset, CachedImages(det, config.det_transform))
        cls = None if cls is None else cast(ImageLabelDataset, CachedImages(cls, config.cls_transform))
    return MixedBatches(
        det,
        cls,
        det_batch=config.det,
        cls_batch=config.cls,
        ratio=config.ratio,
        seed=seed,
        group_by_shape=config.group_by_shape,
        repeat_threshold=config.repeat_threshold,
        rank=rank,
        world_size=world_size,
        workers=config.workers,
    )


def _resize_only(transform: TrainTransform) -> TrainTransform:
    return replace(transform, flip_probability=0.0, jitter=None)
