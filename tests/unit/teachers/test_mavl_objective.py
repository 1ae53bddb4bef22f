"""Assignment, targets and losses by hand."""

from __future__ import annotations

import math

import torch

from ovbridge.teachers.mavl.objective import (
    ImageTargets,
    LossConfig,
    TextTargets,
    box_losses,
    dense_goals,
    match,
    token_goals,
    token_loss,
)

WEIGHTS = LossConfig()


def targets(*images: list[list[float]]) -> ImageTargets:
    most = max(1, *(len(boxes) for boxes in images))
    padded = torch.tensor([0.5, 0.5, 1.0, 1.0]).repeat(len(images), most, 1)
    for n, boxes in enumerate(images):
        if boxes:
            padded[n, : len(boxes)] = torch.tensor(boxes)
    counts = tuple(len(boxes) for boxes in images)
    return ImageTargets(boxes=padded, nouns=torch.zeros(len(images), most, dtype=torch.int64), counts=counts)


def test_each_box_is_given_to_its_nearest_queries() -> None:
    boxes = torch.tensor([[[0.2, 0.2, 0.1, 0.1], [0.25, 0.2, 0.1, 0.1], [0.8, 0.8, 0.1, 0.1], [0.5, 0.5, 0.1, 0.1]]])
    goal = targets([[0.8, 0.8, 0.1, 0.1], [0.22, 0.2, 0.1, 0.1]])
    once = match(boxes, torch.zeros(1, 4), goal, repeats=1, weights=WEIGHTS)
    assert once.tolist() == [[1, -1, 0, -1]]
    twice = match(boxes, torch.zeros(1, 4), goal, repeats=2, weights=WEIGHTS)
    assert twice.tolist() == [[1, 1, 0, 0]]


def test_repeats_give_way_to_many_boxes() -> None:
    goal = targets([[0.1 * k + 0.1, 0.5, 0.05, 0.05] for k in range(3)], [])
    assigned = match(torch.rand(2, 5, 4), torch.zeros(2, 5), goal, repeats=4, weights=WEIGHTS)
    assert sorted(assigned[0].tolist()) == [-1, -1, 0, 1, 2]
    assert assigned[1].tolist() == [-1] * 5


def test_box_losses_by_hand() -> None:
    found, goal = torch.tensor([[0.5, 0.5, 0.4, 0.2]]), torch.tensor([[0.6, 0.5, 0.2, 0.2]])
    l1, giou = box_losses(found, goal, total=2.0)
    assert math.isclose(l1.item(), (0.1 + 0.2) / 2, rel_tol=1e-5)
    # [.3, .7] x [.4, .6] against [.5, .7] x [.4, .6]: the hull is the first box, so GIoU = IoU = 1/2.
    assert math.isclose(giou.item(), 0.25, rel_tol=1e-4)


def test_no_boxes_give_zero_with_a_gradient() -> None:
    found = torch.zeros(0, 4, requires_grad=True)
    l1, giou = box_losses(found, torch.zeros(0, 4), total=1.0)
    (l1 + giou).backward()
    assert l1.item() == 0
    assert giou.item() == 0


def test_token_loss_by_hand() -> None:
    logits = torch.tensor([[[math.log(2.0), math.log(1.0), math.log(1.0)], [0.0, 0.0, 0.0]]])
    goal = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]])
    first = -(0.5 * math.log(0.5) + 0.5 * math.log(0.25))
    loss = token_loss(logits, goal, torch.tensor([[1.0, 0.1]]))
    assert math.isclose(loss.item(), (first + 0.1 * math.log(3.0)) / 1.1, rel_tol=1e-6)


def test_token_goals_tell_meant_other_and_nothing_apart() -> None:
    assigned = torch.tensor([[0, 1, -1]])
    tokens = torch.zeros(1, 2, 4)
    tokens[0, 1, 1:3] = 0.5
    text = TextTargets(image_of_text=torch.tensor([0]), tokens=tokens)
    meant, goal, weight = token_goals(assigned, text, no_object=0.1)
    assert meant.tolist() == [[False, True, False]]
    assert goal[0].tolist() == [[0, 0, 0, 1], [0, 0.5, 0.5, 0], [0, 0, 0, 1]]
    torch.testing.assert_close(weight, torch.tensor([[1.0, 1.0, 0.1]]))


def test_dense_goals_prefer_the_smaller_box() -> None:
    goal = targets([[0.5, 0.5, 0.8, 0.8], [0.5, 0.5, 0.2, 0.2]], [])
    centres = torch.tensor([[[0.5, 0.5], [0.62, 0.5], [0.75, 0.5]]])
    assert dense_goals(goal, centres, shrink=0.5).tolist() == [[1, 0, -1], [-1, -1, -1]]
