from __future__ import annotations

import pytest
import torch

from ovbridge.errors import ConfigError
from ovbridge.inference.tiling import Tiling, merge_tiles
from ovbridge.structures import Detections


def _found(*rows: tuple[float, ...]) -> Detections:
    """Rows x1, y1, x2, y2, score, class."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6)
    return Detections(boxes_xyxy=table[:, :4], scores=table[:, 4], class_ids=table[:, 5].long(), names=("a", "b"))


def test_tiles_cover_the_picture_at_full_size() -> None:
    tiles = Tiling(size=100, overlap=0.2).boxes(100, 250)
    assert tiles == [(0, 0, 100, 100), (80, 0, 180, 100), (150, 0, 250, 100)]
    assert Tiling(size=100).boxes(40, 60) == [(0, 0, 60, 40)]


def test_boxes_come_out_in_pixels_of_the_picture_and_duplicates_merge() -> None:
    tiles = [(0, 0, 100, 100), (80, 0, 180, 100)]
    left, right = _found((86, 10, 96, 30, 0.6, 0)), _found((6, 10, 16, 30, 0.7, 0), (6, 10, 16, 30, 0.5, 1))
    merged = merge_tiles([left, right], tiles, (100, 180), max_detections=10)
    torch.testing.assert_close(merged.boxes_xyxy, torch.tensor([[86.0, 10, 96, 30], [86.0, 10, 96, 30]]))
    torch.testing.assert_close(merged.scores, torch.tensor([0.7, 0.5]))
    assert merged.class_names == ["a", "b"]


def test_a_part_cut_by_a_border_gives_way_to_the_whole_even_at_a_better_score() -> None:
    tiles = [(0, 0, 100, 100), (80, 0, 180, 100)]
    # The thing is at x 85..130: the left tile shows its first 15 pixels, which overlap the whole by a third only.
    merged = merge_tiles(
        [_found((85, 10, 100, 30, 0.9, 0)), _found((5, 10, 50, 30, 0.6, 0))], tiles, (100, 180), max_detections=10
    )
    torch.testing.assert_close(merged.boxes_xyxy, torch.tensor([[85.0, 10, 130, 30]]))
    # Another class is another thing, and the picture's own border cuts nothing off.
    other = merge_tiles(
        [_found((85, 10, 100, 30, 0.9, 1)), _found((5, 10, 50, 30, 0.6, 0))], tiles, (100, 180), max_detections=10
    )
    assert len(other) == 2
    at_edge = merge_tiles(
        [_found((0, 10, 15, 30, 0.9, 0), (0, 10, 60, 30, 0.6, 0)), _found()], tiles, (100, 180), max_detections=10
    )
    assert len(at_edge) == 2


def test_masks_are_placed() -> None:
    part = Detections(
        boxes_xyxy=torch.tensor([[0.0, 0, 2, 2]]),
        scores=torch.tensor([0.5]),
        class_ids=torch.tensor([0]),
        names=("a",),
        masks=torch.ones(1, 4, 4, dtype=torch.bool),
    )
    merged = merge_tiles([part], [(3, 1, 7, 5)], (6, 8), max_detections=5)
    assert merged.masks is not None
    assert merged.masks.shape == (1, 6, 8)
    assert merged.masks[0, 1:5, 3:7].all()
    assert int(merged.masks.sum()) == 16


def test_bad_tilings() -> None:
    with pytest.raises(ConfigError):
        Tiling(size=8)
    with pytest.raises(ConfigError):
        Tiling(size=64, overlap=0.95)
