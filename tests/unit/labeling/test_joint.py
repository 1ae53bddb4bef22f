"""Regions and tags in one pass are what each labeller makes by itself."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np
import pytest
import torch

from ovbridge.errors import ConfigError, StoreError
from ovbridge.label_store import LabelStore
from ovbridge.labeling.labellers import JointLabeller, RegionLabeller, TagLabeller
from ovbridge.labeling.pseudo_boxes import SelectionConfig
from ovbridge.labeling.run import RunSettings, label_images
from ovbridge.labeling.stages import Outcome, label_in_order
from ovbridge.vocabulary import Vocabulary

KEYS = [f"sub/{i:02d}.npy" for i in range(12)]
NAMES = {KEYS[i]: ("c0", "c3") if i % 2 else ("c1",) for i in range(9)}
VOCABULARY = Vocabulary.of_names(["c0", "c1", "c2", "c3"])


@pytest.fixture
def regions(proposer, encoder) -> RegionLabeller:
    return RegionLabeller(proposer=proposer, encoder=encoder, selection=SelectionConfig(top_k=3))


@pytest.fixture
def tags(proposer) -> TagLabeller:
    return TagLabeller(proposer=proposer, names_of=NAMES, threshold=21 / 255)


@pytest.fixture
def joint(regions, tags) -> JointLabeller:
    return JointLabeller(regions=regions, tags=tags)


def rows(store: Path, table: str) -> list[dict]:
    found = lance.dataset(str(store / f"{table}.lance")).to_table().to_pylist()
    return sorted(found, key=lambda row: (row["image_key"], row["rank"]))


def test_one_pass_makes_the_rows_of_two(tmp_path, image_root, proposer, regions, tags, joint, read_image) -> None:
    settings = RunSettings(batch_images=3)
    label_images(tmp_path / "two", image_root, KEYS, regions, read_image=read_image, settings=settings)
    label_images(tmp_path / "two", image_root, list(NAMES), tags, read_image=read_image, settings=settings)
    proposer.batches.clear()
    summary = label_images(tmp_path / "one", image_root, KEYS, joint, read_image=read_image, settings=settings)
    assert (summary.images, summary.labelled, sum(proposer.batches)) == (12, 12, 12)
    for table in ("regions", "tags"):
        assert rows(tmp_path / "one", table) == rows(tmp_path / "two", table)
    status = LabelStore.open(tmp_path / "one").status()
    assert (status["regions"]["images"], status["regions"]["of"]) == (12, 12)
    assert (status["tags"]["images"], status["tags"]["of"]) == (9, 9)


def test_a_pass_fills_up_what_one_table_lacks(tmp_path, image_root, proposer, regions, joint, read_image) -> None:
    store = tmp_path / "store"
    label_images(store, image_root, KEYS, regions, read_image=read_image)
    before = rows(store, "regions")
    summary = label_images(store, image_root, KEYS, joint, read_image=read_image)
    assert (summary.done_before, summary.labelled) == (3, 9)
    assert rows(store, "regions") == before
    assert set(LabelStore.open(store).tags(KEYS, VOCABULARY)) == set(NAMES)
    assert label_images(store, image_root, KEYS, joint, read_image=read_image).labelled == 0


def test_a_bad_image_is_noted_in_both_tables(tmp_path, image_root, joint, read_image) -> None:
    (image_root / KEYS[1]).write_bytes(b"")
    (image_root / KEYS[11]).write_bytes(b"")
    settings = RunSettings(max_failed=0.5)
    summary = label_images(tmp_path / "s", image_root, KEYS, joint, read_image=read_image, settings=settings)
    assert set(summary.failures) == {KEYS[1], KEYS[11]}
    status = LabelStore.open(tmp_path / "s").status()
    assert list(status["tags"]["failures"]) == [KEYS[1]]
    assert set(status["regions"]["failures"]) == {KEYS[1], KEYS[11]}


def test_two_proposers_are_refused(regions, proposer, encoder) -> None:
    other = type(proposer)()
    with pytest.raises(ConfigError, match="one proposer"):
        JointLabeller(regions=regions, tags=TagLabeller(proposer=other, names_of=NAMES))


def test_no_table_is_made_where_one_does_not_fit(tmp_path, image_root, regions, tags, proposer, encoder, read_image):
    label_images(tmp_path / "s", image_root, KEYS[:2], tags, read_image=read_image)
    other = JointLabeller(regions=regions, tags=TagLabeller(proposer=proposer, names_of=NAMES, threshold=0.5))
    with pytest.raises(StoreError, match="threshold"):
        label_images(tmp_path / "s", image_root, KEYS, other, read_image=read_image)
    assert "regions" not in LabelStore.open(tmp_path / "s")


def test_units_are_worked_on_alike_whoever_takes_them(image_root, joint, proposer, read_image) -> None:
    settings = RunSettings(batch_images=3, unit_images=5)

    def outcomes(keys: list[str]) -> list[Outcome]:
        return list(label_in_order(keys, image_root, joint, read_image, settings))

    whole = outcomes(KEYS)
    batches = list(proposer.batches)
    proposer.batches.clear()
    parts = [outcome for start in range(0, 12, 5) for outcome in outcomes(KEYS[start : start + 5])]
    assert [o.image_key for o in parts] == [o.image_key for o in whole]
    assert proposer.batches == batches
    # Images 0, 3, 6, 9 are tall: units 0-4, 5-9, 10-11 hold 3 + 2, 3 + 2 and 2 of either size.
    assert batches == [3, 2, 3, 2, 2]
    for mine, theirs in zip(parts, whole, strict=True):
        assert mine.labels is not None
        assert theirs.labels is not None
        assert torch.equal(mine.labels["regions"].boxes_xyxy, theirs.labels["regions"].boxes_xyxy)
        assert torch.equal(mine.labels["regions"].embeddings, theirs.labels["regions"].embeddings)


def test_units_end_batches_even_where_images_fail(image_root, joint, proposer, read_image) -> None:
    (image_root / KEYS[1]).write_bytes(b"")
    found = list(label_in_order(KEYS[:6], image_root, joint, read_image, RunSettings(unit_images=3)))
    assert np.sum([o.labels is None for o in found]) == 1
    # 0 and 2, of different sizes; then 3 apart from 4 and 5.
    assert proposer.batches == [1, 1, 1, 2]
