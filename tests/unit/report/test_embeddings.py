from __future__ import annotations

import math

import numpy as np

from ovbridge.report.content import EmbeddingPanel
from ovbridge.report.embeddings import apart, knn_purity, similarity_matrix, similarity_panels, tsne, tsne_panels


def test_similarity_matrix_by_hand() -> None:
    matrix = similarity_matrix(np.array([[3.0, 0.0], [0.0, 2.0], [1.0, 1.0], [0.0, 0.0]]))
    half = math.sqrt(0.5)
    np.testing.assert_allclose(matrix[:3, :3], [[1, 0, half], [0, 1, half], [half, half, 1]], atol=1e-12)
    np.testing.assert_array_equal(matrix[3], 0)


def test_knn_purity_by_hand() -> None:
    # Directions at 0, 10 and 50 degrees: the nearest of a is b, of b is a, of c is b.
    points = np.array([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in (0, 10, 50)])
    assert knn_purity(points, ["x", "x", "y"], k=1) == 2 / 3
    # With k = 2 both others are neighbours: 1/2 of a's, 1/2 of b's and none of c's are right.
    assert math.isclose(knn_purity(points, ["x", "x", "y"], k=2), 1 / 3)
    assert knn_purity(points, ["x", "x", "x"], k=9) == 1.0
    assert math.isnan(knn_purity(points[:1], ["x"]))


def test_knn_purity_ignores_length() -> None:
    rng = np.random.default_rng(0)
    rows = np.repeat(np.eye(4), 6, axis=0) + rng.normal(scale=0.05, size=(24, 4))
    labels = [i // 6 for i in range(24)]
    assert knn_purity(rows, labels) == knn_purity(rows * rng.uniform(0.1, 10, (24, 1)), labels) == 1.0


def test_tsne_is_repeatable_and_survives_few_points() -> None:
    rows = np.random.default_rng(0).normal(size=(12, 5))
    np.testing.assert_array_equal(tsne(rows, seed=3), tsne(rows, seed=3))
    assert tsne(rows[:2]).shape == (2, 2)


def test_panels_name_their_purity() -> None:
    rows = np.repeat(np.eye(3), 8, axis=0)
    labels = ["mug"] * 8 + ["kite"] * 8 + ["bell"] * 8
    panels = [EmbeddingPanel(title="CLIP", embeddings=rows + np.random.default_rng(0).normal(scale=0.01, size=(24, 3)))]
    assert "5-NN purity 1.00" in tsne_panels(panels, labels)
    matrix = similarity_panels(panels, labels)
    assert "<image" in matrix
    assert "kite" in matrix


def test_names_beside_a_matrix_do_not_hide_each_other() -> None:
    assert apart([1.0, 5.0, 9.0], 2.0, 9.0) == [1.0, 5.0, 9.0]
    assert apart([4.0, 4.5, 8.9, 9.0], 2.0, 9.0) == [3.0, 5.0, 7.0, 9.0]
    assert apart([], 1.0, 3.0) == []
