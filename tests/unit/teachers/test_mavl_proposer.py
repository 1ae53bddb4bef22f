"""Images and texts in, boxes in pixels out."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from ovbridge.structures import Proposals
from ovbridge.teachers.mavl.config import BackboneConfig, MavlConfig, TextConfig
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.proposer import MavlProposer
from ovbridge.teachers.mavl.quality import merge_proposals
from ovbridge.teachers.mavl.text import train_tokenizer
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, Proposer, class_query

TINY = MavlConfig(
    backbone=BackboneConfig(block="basic", blocks=(1, 1, 1, 1), widths=(8, 8, 16, 16), norm="batch"),
    text=TextConfig(vocabulary_size=40, hidden=16, layers=1, heads=2, feedforward=32, positions=20, dropout=0.0),
    d_model=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=1,
    fusion_layers=1,
    feedforward=32,
    levels=3,
    points=2,
    queries=12,
    token_positions=10,
    image_short_side=64,
    dropout=0.0,
)
TEXTS = ("every red mug", "all objects", "every mug")


def proposer(truncate: bool = False) -> MavlProposer:
    torch.manual_seed(0)
    model = Mavl(TINY)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    tokenizer = train_tokenizer(TEXTS, vocabulary_size=40)
    device = torch.device("cpu")
    return MavlProposer(
        model, tokenizer, name="tiny", trained_on="nothing", digest="0", device=device, truncate=truncate
    )


def photo(height: int, width: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def assert_equal(a: Proposals, b: Proposals) -> None:
    torch.testing.assert_close(a.scores, b.scores, rtol=0, atol=1e-5)
    torch.testing.assert_close(a.boxes_xyxy, b.boxes_xyxy, rtol=0, atol=1e-2)


def test_a_batch_equals_its_parts() -> None:
    images = [photo(80, 120, 0), photo(120, 80, 1), photo(160, 240, 2)]
    queries = [TEXTS, TEXTS[:1], (TEXTS[1], "a thing never seen in training")]
    teacher: Proposer = proposer()
    together = teacher.propose(images, queries)
    assert [len(answers) for answers in together] == [3, 1, 2]
    for image, texts, answers in zip(images, queries, together, strict=True):
        for text, answer in zip(texts, answers, strict=True):
            assert_equal(proposer().propose([image], [[text]])[0][0], answer)


def test_best_first_and_in_pixels_of_the_image_given() -> None:
    small = photo(64, 96, 3)
    large = np.repeat(np.repeat(small, 3, axis=0), 3, axis=1)
    teacher = proposer()
    first, second = teacher.propose([small, large], [["all objects"]] * 2)
    assert len(first[0]) == TINY.queries
    assert (first[0].scores.diff() <= 0).all()
    # The same picture three times as large: resizing blurs it a little.
    assert second[0].boxes_xyxy.max() > 2 * first[0].boxes_xyxy.max()
    assert first[0].boxes_xyxy.max() < 150


def test_truncated_boxes_are_whole_and_towards_zero() -> None:
    image = photo(64, 96, 4)
    exact = proposer().propose([image], [["all objects"]])[0][0]
    whole = proposer(truncate=True).propose([image], [["all objects"]])[0][0]
    assert torch.equal(whole.boxes_xyxy, exact.boxes_xyxy.trunc())


def test_no_images_no_queries_and_very_long_texts() -> None:
    teacher = proposer()
    assert teacher.propose([], []) == []
    assert teacher.propose([photo(64, 64, 5)], [[]]) == [[]]
    assert len(teacher.propose([photo(64, 64, 5)], [["mug " * 500]])[0][0]) == TINY.queries
    with pytest.raises(ValueError, match="1 images for 2"):
        teacher.propose([photo(64, 64, 5)], [[], []])


def test_merging_takes_the_best_and_drops_duplicates() -> None:
    def some(boxes: list[list[float]], scores: list[float]) -> Proposals:
        return Proposals(boxes_xyxy=torch.tensor(boxes, dtype=torch.float32), scores=torch.tensor(scores))

    merged = merge_proposals(
        [some([[0, 0, 10, 10], [50, 50, 60, 60]], [0.6, 0.5]), some([[1, 0, 11, 10], [20, 20, 30, 30]], [0.9, 0.1])],
        top=1,
    )
    assert merged.boxes_xyxy.tolist() == [[1, 0, 11, 10]]
    merged = merge_proposals([some([[0, 0, 10, 10]], [0.6]), some([[20, 20, 30, 30]], [0.9])])
    torch.testing.assert_close(merged.scores, torch.tensor([0.9, 0.6]))


def test_queries_of_the_paper() -> None:
    assert CLASS_AGNOSTIC_QUERIES[0] == "all objects"
    assert len(CLASS_AGNOSTIC_QUERIES) == 4
    assert class_query("wine_glass") == "every wine glass"
