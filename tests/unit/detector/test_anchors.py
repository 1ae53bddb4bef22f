"""Anchors, against Detectron2's values."""

from __future__ import annotations

import pytest
import torch

from ovbridge.detector.anchors import cell_anchors, grid_anchors


def test_cell_anchors_are_size_major_and_unrounded() -> None:
    cell = cell_anchors((32.0, 64.0), (0.5, 1.0, 2.0))
    assert cell[0].tolist() == pytest.approx([-22.627417, -11.3137085, 22.627417, 11.3137085])
    assert cell[1].tolist() == [-16, -16, 16, 16]
    assert cell[2].tolist() == pytest.approx([-11.3137085, -22.627417, 11.3137085, 22.627417])
    assert cell[4].tolist() == [-32, -32, 32, 32]


def test_grid_runs_row_by_row_with_all_anchors_of_a_cell_together() -> None:
    grid = grid_anchors((2, 3), 16, torch.tensor([[-1.0, -1, 1, 1], [-2.0, -2, 2, 2]]))
    assert grid.shape == (12, 4)
    assert grid[0].tolist() == [-1, -1, 1, 1]
    assert grid[3].tolist() == [14, -2, 18, 2]
    assert grid[6].tolist() == [-1, 15, 1, 17]
