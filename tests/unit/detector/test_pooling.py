"""Which level a region is pooled from, and that pooling is half-pixel aligned."""

from __future__ import annotations

import torch

from ovbridge.detector.pooling import RegionPooler, batch_rois


def test_levels_follow_the_pyramid_paper() -> None:
    pooler = RegionPooler(resolution=7, strides=(4, 8, 16, 32))
    sides = torch.tensor([10.0, 111.9, 112.1, 223.9, 224.1, 447.0, 449.0, 2000.0])
    rois = torch.stack([torch.zeros(8), torch.zeros(8), torch.zeros(8), sides, sides], dim=1)
    assert pooler.levels_of(rois).tolist() == [0, 0, 1, 1, 2, 2, 3, 3]


def test_rois_name_their_image() -> None:
    rois = batch_rois([torch.ones(1, 4), torch.zeros(0, 4), torch.full((2, 4), 3.0)])
    assert rois[:, 0].tolist() == [0, 2, 2]
    assert batch_rois([torch.zeros(0, 4)]).shape == (0, 5)


def test_every_region_comes_from_its_level_in_order() -> None:
    pooler = RegionPooler(resolution=2, strides=(8, 16), canonical_size=64.0, canonical_stride=16)
    maps = [torch.full((1, 3, 16, 16), 1.0), torch.full((1, 3, 8, 8), 2.0)]
    rois = torch.tensor([[0, 10.0, 10, 110, 110], [0, 10, 10, 30, 30], [0, 0, 0, 128, 128]])
    assert pooler(maps, rois).mean(dim=(1, 2, 3)).tolist() == [2, 1, 2]
    assert pooler(maps, rois[:0]).shape == (0, 3, 2, 2)


def test_pooling_is_aligned_to_half_pixels() -> None:
    # A ramp whose value is the x coordinate of the pixel centre in input pixels.
    ramp = (torch.arange(16.0) * 4 + 2).expand(1, 1, 16, 16)
    pooled = RegionPooler(resolution=2, strides=(4,))([ramp], torch.tensor([[0, 8.0, 8, 24, 24]]))
    assert pooled[0, 0, 0].tolist() == [12.0, 20.0]
