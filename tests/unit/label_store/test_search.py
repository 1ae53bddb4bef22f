"""Text to regions, with and without a vector index."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ovbridge.errors import StoreError
from ovbridge.label_store import LabelledImage, LabelStore, Manifest
from ovbridge.label_store.search import index_regions, search_regions
from ovbridge.structures import RegionTargets

DIM = 16
MANIFEST = Manifest(
    table="regions",
    proposer="fake",
    proposer_digest="p",
    proposer_trained_on="nothing",
    queries=("all objects",),
    selection={},
    encoder="fake",
    encoder_digest="c",
    embedding_dim=DIM,
    crop_rule="tight",
)


def image(key: str, embeddings: torch.Tensor) -> LabelledImage:
    count = len(embeddings)
    targets = RegionTargets(
        boxes_xyxy=torch.tensor([[float(i), 0, i + 5, 5] for i in range(count)]).reshape(-1, 4),
        embeddings=embeddings,
        scores=torch.full((count,), 0.5),
    )
    return LabelledImage(image_key=key, labels=targets)


def directions(count: int, seed: int) -> torch.Tensor:
    return torch.randn(count, DIM, generator=torch.Generator().manual_seed(seed))


def test_the_nearest_by_angle_come_first_whatever_their_length(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, MANIFEST)
    east, north = torch.eye(DIM)[0], torch.eye(DIM)[1]
    store.append("regions", [image("a", torch.stack([9 * north, 0.1 * east])), image("none", torch.zeros(0, DIM))])
    store.append("regions", [image("b", (3 * east + 4 * north)[None])])
    hits = search_regions(store, 100 * east, top=5)
    assert [(h.image_key, h.box_xyxy[0]) for h in hits] == [("a", 1.0), ("b", 0.0), ("a", 0.0)]
    assert [h.similarity for h in hits] == pytest.approx([1.0, 0.6, 0.0], abs=2e-3)


def test_an_index_finds_what_comparing_all_finds(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, MANIFEST)
    vectors = directions(5000, 0)
    store.append("regions", [image(f"{i:03d}", vectors[10 * i : 10 * i + 10]) for i in range(500)])
    store.append("regions", [image("none", torch.zeros(0, DIM))])
    queries = vectors[torch.tensor([7, 1234, 4999])] + 0.05 * directions(3, 1)
    plain = [search_regions(store, query, top=3) for query in queries]
    index_regions(store)
    assert len(list((tmp_path / "regions.lance" / "_indices").iterdir())) == 1
    for query, expected in zip(queries, plain, strict=True):
        assert search_regions(store, query, top=3)[0] == expected[0]
    # Regions labelled after the index are found beside it, and compaction keeps it.
    store.append("regions", [image("late", queries[:1])])
    assert search_regions(store, queries[0], top=1)[0].image_key == "late"
    store.compact("regions")
    assert search_regions(store, queries[0], top=1)[0].image_key == "late"
    assert search_regions(store, queries[1], top=1)[0] == plain[1][0]


def test_a_small_store_needs_no_index(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, MANIFEST)
    with pytest.raises(StoreError, match="no rows"):
        index_regions(store)
    store.append("regions", [image("a", directions(3, 0))])
    with pytest.raises(StoreError, match="leave out --index"):
        index_regions(store)


def test_another_width_is_refused(tmp_path: Path) -> None:
    store = LabelStore.create_or_open(tmp_path, replace(MANIFEST, embedding_dim=4))
    with pytest.raises(StoreError, match="4 values, the query has 16"):
        search_regions(store, torch.ones(DIM))
