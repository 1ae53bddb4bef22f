"""How well a model's region embeddings keep the novel classes apart (the paper's Fig. 2), with a number.

Legend: N regions, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ovbridge.report.content import EmbeddingPanel
from ovbridge.report.drawing import class_colour
from ovbridge.report.figure import INK, MUTED, chart, to_svg

Array = np.ndarray[Any, Any]


def unit_rows(embeddings_ND: Array) -> Array:
    """Rows of length one; rows of zeros stay zero."""
    norms = np.linalg.norm(embeddings_ND, axis=1, keepdims=True)
    return np.asarray(embeddings_ND / np.maximum(norms, 1e-12))


def similarity_matrix(embeddings_ND: Array) -> Array:
    """[N, N] cosine similarities of the rows, in [-1, 1]."""
    unit_ND = unit_rows(np.asarray(embeddings_ND, dtype=np.float64))
    return np.asarray(np.clip(unit_ND @ unit_ND.T, -1.0, 1.0))


def knn_purity(embeddings_ND: Array, labels: Sequence[Any], k: int = 5) -> float:
    """Mean share of a region's `k` nearest neighbours (cosine, itself excluded) that are of its class, in [0, 1].

    With fewer than k + 1 regions all others are its neighbours; of fewer than two regions it is NaN.
    """
    count = len(labels)
    if count < 2:
        return float("nan")
    similarity_NN = similarity_matrix(embeddings_ND)
    np.fill_diagonal(similarity_NN, -np.inf)
    neighbours = np.argsort(-similarity_NN, axis=1, kind="stable")[:, : min(k, count - 1)]
    classes = np.unique(np.asarray(labels), return_inverse=True)[1]
    return float((classes[neighbours] == classes[:, None]).mean())


LEAST_LABEL_GAP = 0.054
"""Between the names beside a matrix, as a share of its height: a class of few regions is narrower than its name."""


def similarity_panels(panels: Sequence[EmbeddingPanel], labels: Sequence[str]) -> str:
    """One matrix a model, regions grouped by class; bright blocks on the diagonal are good.

    Each panel spans its own 2nd to 98th percentile: models differ in how much all regions have in common.
    """
    order = np.argsort(np.asarray(labels), kind="stable")
    grouped = [labels[i] for i in order]
    names = list(dict.fromkeys(grouped))
    centres = [float(np.mean([i for i, label in enumerate(grouped) if label == name])) for name in names]
    places = apart(centres, min(LEAST_LABEL_GAP, 1 / max(len(names), 1)) * len(labels), float(len(labels) - 1))
    with chart(1, len(panels), height=2.45) as (figure, axes):
        for position, (axis, panel) in enumerate(zip(axes.flat, panels, strict=True)):
            matrix = similarity_matrix(panel.embeddings[order])
            low, high = np.percentile(matrix, [2, 98])
            axis.imshow(matrix, vmin=low, vmax=max(high, low + 1e-6), cmap="magma", interpolation="nearest")
            axis.set_title(panel.title)
            axis.set_xticks([])
            axis.set_yticks(places if position == 0 else [], names if position == 0 else [], fontsize=7.5)
            axis.grid(visible=False)
            for spine in axis.spines.values():
                spine.set_visible(False)
        return to_svg(figure, label="Cosine similarity of novel-class regions")


def apart(centres: Sequence[float], least: float, end: float) -> list[float]:
    """Rising positions moved as little as a pass down and one back up from `end` need to lie `least` apart."""
    places = list(centres)
    for i in range(1, len(places)):
        places[i] = max(places[i], places[i - 1] + least)
    for i in reversed(range(len(places))):
        places[i] = min(places[i], end if i == len(places) - 1 else places[i + 1] - least)
    return places


def tsne_panels(panels: Sequence[EmbeddingPanel], labels: Sequence[str], *, seed: int = 0, k: int = 5) -> str:
    """One map a model, one colour a class, with the kNN purity below the title."""
    names = sorted(set(labels))
    colours = {name: "#{:02x}{:02x}{:02x}".format(*class_colour(i, len(names))) for i, name in enumerate(names)}
    with chart(1, len(panels), height=3.6) as (figure, axes):
        for axis, panel in zip(axes.flat, panels, strict=True):
            points = tsne(panel.embeddings, seed=seed)
            axis.scatter(points[:, 0], points[:, 1], s=11, c=[colours[label] for label in labels], linewidth=0)
            axis.set_title(panel.title)
            purity = knn_purity(panel.embeddings, labels, k)
            axis.set_xlabel(f"{k}-NN purity {purity:.2f}", color=MUTED)
            axis.set(xticks=[], yticks=[])
            axis.grid(visible=False)
            axis.set_box_aspect(1)
        from matplotlib.lines import Line2D

        handles = [Line2D([], [], marker="o", linestyle="", color=colours[name], label=name) for name in names]
        figure.legend(
            handles=handles,
            loc="outside lower center",
            ncols=min(9, len(names)),
            labelcolor=INK,
            handletextpad=0.1,
            fontsize=8,
        )
        return to_svg(figure, label="t-SNE of region embeddings of novel classes")


def tsne(embeddings_ND: Array, *, seed: int = 0) -> Array:
    """[N, 2] t-SNE of the unit rows; the same seed gives the same map. Fewer than four regions are laid in a row."""
    count = len(embeddings_ND)
    if count < 4:
        return np.stack([np.arange(count), np.zeros(count)], axis=1)
    from sklearn.manifold import TSNE

    unit_ND = unit_rows(np.asarray(embeddings_ND, dtype=np.float64))
    perplexity = min(30.0, (count - 1) / 3)
    mapped = TSNE(init="pca", perplexity=perplexity, max_iter=500, random_state=seed).fit_transform(unit_ND)
    return np.asarray(mapped)
