from __future__ import annotations

import pytest
import torch

from ovbridge.errors import ConfigError
from ovbridge.labeling.pseudo_boxes import SelectionConfig, best_box, class_agnostic, suppress, usable
from ovbridge.structures import Proposals


def proposals(*rows: tuple[float, float, float, float, float]) -> Proposals:
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 5)
    return Proposals(boxes_xyxy=table[:, :4], scores=table[:, 4])


@pytest.mark.parametrize("wrong", [{"top_k": -1}, {"top_k": 0}, {"per_query": 0}])
def test_choosing_no_box_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        SelectionConfig(**wrong)


def test_last_pixel_convention_changes_the_overlap() -> None:
    boxes = torch.tensor([[0.0, 0.0, 9.0, 9.0], [0.0, 0.0, 9.0, 4.0]])
    scores = torch.tensor([0.9, 0.8])
    assert suppress(boxes, scores, 0.47).tolist() == [0, 1]  # 36 / 81 = 0.44
    assert suppress(boxes, scores, 0.47, last_pixel_inside=True).tolist() == [0]  # 50 / 100 = 0.5
    assert suppress(boxes, scores, 0.5, last_pixel_inside=True).tolist() == [0, 1]  # equal is not more


def test_queries_are_merged_and_duplicates_fall_to_the_better_one() -> None:
    first = proposals((0, 0, 10, 10, 0.6), (20, 0, 30, 10, 0.5))
    second = proposals((0, 1, 10, 10, 0.9), (0, 20, 10, 30, 0.4))
    chosen = class_agnostic([first, second], 40, 40, SelectionConfig(top_k=2))
    assert chosen.boxes_xyxy.tolist() == [[0, 1, 10, 10], [20, 0, 30, 10]]
    torch.testing.assert_close(chosen.scores, torch.tensor([0.9, 0.5]))


def test_only_the_best_of_each_query_enter() -> None:
    query = proposals((0, 0, 5, 5, 0.3), (10, 0, 15, 5, 0.9), (20, 0, 25, 5, 0.6))
    chosen = class_agnostic([query], 40, 40, SelectionConfig(per_query=2))
    assert chosen.boxes_xyxy[:, 0].tolist() == [10, 20]


def test_boxes_are_clipped_and_degenerate_ones_dropped_alone() -> None:
    found = proposals((-5, 2, 8, 90, 0.9), (50, 2, 60, 8, 0.8), (3, 3, 3.5, 9, 0.7), (float("nan"), 0, 4, 4, 0.6))
    kept = usable(found, 10, 20, paper_exact=False)
    assert kept.boxes_xyxy.tolist() == [[0, 2, 8, 10]]
    chosen = class_agnostic([found], 10, 20, SelectionConfig())
    assert chosen.boxes_xyxy.tolist() == [[0, 2, 8, 10]]


def test_paper_exact_truncates_towards_zero_and_does_not_clip() -> None:
    kept = usable(proposals((-5.9, 2.9, 28.9, 9.1, 0.9)), 10, 20, paper_exact=True)
    assert kept.boxes_xyxy.tolist() == [[-5, 2, 28, 9]]


def test_no_proposals_give_no_regions() -> None:
    assert len(class_agnostic([proposals(), proposals()], 10, 10, SelectionConfig())) == 0
    assert best_box(proposals(), 10, 10, threshold=0.0) is None


@pytest.mark.parametrize("threshold", [0.0, 0.74])
def test_best_box_above_the_threshold_is_taken(threshold: float) -> None:
    best = best_box(proposals((0, 0, 5, 5, 0.5), (1, 1, 9, 9, 0.75)), 10, 10, threshold=threshold)
    assert best is not None
    assert (best[0].tolist(), best[1]) == ([1, 1, 9, 9], 0.75)


@pytest.mark.parametrize("threshold", [0.75, 0.95])
def test_best_box_must_exceed_the_threshold(threshold: float) -> None:
    assert best_box(proposals((0, 0, 5, 5, 0.5), (1, 1, 9, 9, 0.75)), 10, 10, threshold=threshold) is None


def test_best_box_without_area_gives_way_to_the_next() -> None:
    best = best_box(proposals((50, 0, 60, 5, 0.9), (1, 1, 9, 9, 0.75)), 10, 10, threshold=0.5)
    assert best is not None
    assert best[0].tolist() == [1, 1, 9, 9]


def test_a_size_weight_prefers_the_whole_to_its_parts() -> None:
    part, whole = (4, 4, 6, 6, 0.8), (1, 1, 9, 9, 0.6)
    assert best_box(proposals(part, whole), 10, 10, threshold=0.0)[1] == pytest.approx(0.8)  # type: ignore[index]
    # 0.8 * 0.04^w against 0.6 * 0.64^w: the whole wins where 16^w > 4 / 3, so above w = 0.104.
    for weight, expected in ((0.1, 0.8), (0.11, 0.6), (1.0, 0.6)):
        found = best_box(proposals(part, whole), 10, 10, threshold=0.0, size_weight=weight)
        assert found is not None
        assert found[1] == pytest.approx(expected), "the score itself is left as it is"
    assert best_box(proposals(part, whole), 10, 10, threshold=0.7, size_weight=1.0) is None
