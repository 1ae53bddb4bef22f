from __future__ import annotations

import numpy as np
import pytest
import torch

from ovbridge.data.transforms import PhotometricJitter, TrainTransform
from ovbridge.errors import ConfigError
from ovbridge.structures import BoxLabels, ImageLabels, RegionTargets, TrainingImage
from ovbridge.training.image_cache import CachedImages, flipped_labels

FULL = TrainTransform(short_sides=(24,), max_long_side=40, jitter=PhotometricJitter())


class Source:
    def __init__(self, transform: TrainTransform) -> None:
        self.images, self.is_wide, self.reads = (0, 1), np.array([True, True]), 0
        self._transform = transform

    def __len__(self) -> int:
        return 2

    def repeat_factors(self, threshold: float) -> np.ndarray:
        return np.full(2, threshold)

    def sample(self, index: int, generator: torch.Generator) -> TrainingImage:
        self.reads += 1
        rng = np.random.default_rng(index)
        corner = torch.tensor(rng.uniform(0, 20, (3, 2)), dtype=torch.float32)
        boxes = torch.cat([corner, corner + 9.3], dim=1)
        return self._transform(
            rng.integers(0, 255, (30, 50, 3), dtype=np.uint8),
            image_id=index,
            generator=generator,
            boxes=BoxLabels(boxes_xyxy=boxes, class_ids=torch.arange(3), masks=torch.rand(3, 30, 50) > 0.5),
            labels=ImageLabels(boxes_xyxy=boxes, class_ids=torch.arange(3), scores=torch.ones(3)),
            regions=RegionTargets(boxes_xyxy=boxes, embeddings=torch.eye(3), scores=torch.ones(3)),
        )


def test_cached_samples_equal_those_from_disk_and_are_read_once() -> None:
    resize_only = TrainTransform(short_sides=(24,), max_long_side=40, flip_probability=0.0)
    torch.manual_seed(0)
    inner = Source(resize_only)
    cached = CachedImages(inner, FULL)
    flips = set()
    for draw in range(8):
        for index in (0, 1):
            torch.manual_seed(index)  # the masks
            plain = Source(FULL).sample(index, torch.Generator().manual_seed(draw))
            torch.manual_seed(index)
            ours = cached.sample(index, torch.Generator().manual_seed(draw))
            assert torch.equal(ours.pixels, plain.pixels)
            assert ours.pixels.is_contiguous()
            assert ours.boxes is not None
            assert plain.boxes is not None
            torch.testing.assert_close(ours.boxes.boxes_xyxy, plain.boxes.boxes_xyxy, rtol=0, atol=1e-5)
            assert ours.boxes.masks is not None
            assert plain.boxes.masks is not None
            assert torch.equal(ours.boxes.masks, plain.boxes.masks)
            assert ours.labels is not None
            assert plain.labels is not None
            assert torch.equal(ours.labels.boxes_xyxy, plain.labels.boxes_xyxy)
            assert ours.regions is not None
            assert plain.regions is not None
            assert torch.equal(ours.regions.boxes_xyxy, plain.regions.boxes_xyxy)
            flips.add(float(ours.regions.boxes_xyxy[0, 0]))
    assert len(flips) == 4  # both images, flipped and not
    assert inner.reads == 2
    assert cached.repeat_factors(0.5).tolist() == [0.5, 0.5]


def test_a_box_too_narrow_to_be_mirrored_is_dropped_with_its_rows() -> None:
    boxes = torch.tensor([[5.0, 5.0, 5.0 + 1e-6, 20.0], [2.0, 3.0, 12.0, 9.0]])
    assert boxes[0, 2] > boxes[0, 0]
    ids, scores = torch.arange(2), torch.arange(2.0)
    image = flipped_labels(
        TrainingImage(
            image_id=0,
            pixels=torch.zeros(3, 24, 160, dtype=torch.uint8),
            boxes=BoxLabels(boxes_xyxy=boxes, class_ids=ids, masks=torch.zeros(2, 24, 160, dtype=torch.bool)),
            labels=ImageLabels(boxes_xyxy=boxes, class_ids=ids, scores=scores),
            regions=RegionTargets(boxes_xyxy=boxes, embeddings=torch.eye(2), scores=scores),
        )
    )
    assert image.boxes is not None
    assert image.labels is not None
    assert image.regions is not None
    for labels in (image.boxes, image.labels, image.regions):
        assert labels.boxes_xyxy.tolist() == [[148, 3, 158, 9]]
    assert image.boxes.class_ids.tolist() == image.labels.class_ids.tolist() == [1]
    assert image.regions.embeddings.tolist() == [[0, 1]]


def test_several_sizes_cannot_be_cached() -> None:
    with pytest.raises(ConfigError, match="cache_in_memory"):
        CachedImages(Source(FULL), TrainTransform(short_sides=(24, 32)))
