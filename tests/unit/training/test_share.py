"""Parts of a batch add up to the whole batch, by hand-made counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from ovbridge.detector.sampling import SampledRegions
from ovbridge.structures import ImageLabels, RegionTargets, TrainingImage
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.ranks import Peers, Ranks
from ovbridge.training.share import shares_of_step


class OtherSays(Peers):
    """The first of two processes, the second of which answers what it is told to."""

    def __init__(self, *answers: Sequence[float] | Tensor) -> None:
        super().__init__(Ranks(rank=0, world_size=2))
        self._answers = list(answers)

    def gather(self, values: Sequence[float]) -> list[list[float]]:
        answer = self._answers.pop(0)
        assert not isinstance(answer, Tensor)
        return [list(values), list(answer)]

    def gather_rows(self, own_RD: Tensor) -> list[Tensor]:
        answer = self._answers.pop(0)
        assert isinstance(answer, Tensor)
        return [own_RD.detach(), answer]


def image(height: int, width: int, *, regions: int = 0, labels: int = 0) -> TrainingImage:
    def boxes(count: int) -> Tensor:
        return torch.tensor([[0.0, 0, 9, 9]]).repeat(count, 1)

    return TrainingImage(
        image_id=0,
        pixels=torch.zeros(3, height, width, dtype=torch.uint8),
        regions=RegionTargets(boxes_xyxy=boxes(regions), embeddings=torch.ones(regions, 2), scores=torch.ones(regions)),
        labels=ImageLabels(
            boxes_xyxy=boxes(labels), class_ids=torch.zeros(labels, dtype=torch.int64), scores=torch.ones(labels)
        ),
    )


def sampled(foreground: int, background: int) -> SampledRegions:
    count = foreground + background
    ids = torch.tensor([0] * foreground + [5] * background)
    boxes = torch.zeros(count, 4)
    return SampledRegions(boxes_xyxy=boxes, class_ids=ids, true_boxes_xyxy=boxes, true_indices=ids)


def test_every_part_weighs_as_much_as_it_holds() -> None:
    # The other process: padded to 40 x 20, 2 images, 5 regions, 1 labelled image with 6 labels; then 30 sampled, 3 with
    # a mask.
    peers = OtherSays([40, 20, 2, 5, 1, 6], [30, 3])
    images = [image(30, 30, regions=1, labels=2), image(20, 50, regions=2)]
    ((part, share),) = shares_of_step(images, passes=1, peers=peers, seed=0, step=0)
    assert part == images
    assert share.padded_hw == (40, 50)
    weights = LossWeights(classification=1.0, box=2.0, mask=1.0, rkd_l1=15.0, rkd_relation=6.0, image_label=0.1)
    regions = share.region_weights(weights, images, [sampled(1, 9)], 1)
    # 10 of 40 regions, of which 1 of 4 with a mask; 3 of 8 distilled; times 2, for gradients are averaged over 2.
    assert regions.classification == pytest.approx(2 * 10 / 40)
    assert regions.box == pytest.approx(2 * 2 * 10 / 40)
    assert regions.mask == pytest.approx(2 * 1 / 4)
    assert regions.rkd_l1 == pytest.approx(15 * 2 * 3 / 8)
    assert regions.rkd_relation == 6.0
    labelled = share.label_weights(replace(weights, image_label_parts=1.0, image_label_refine=0.5), images)
    assert labelled.image_label == pytest.approx(0.1 * 2 * 1 / 2)
    assert labelled.image_label_parts == pytest.approx(2 * 2 / 8)
    assert labelled.image_label_refine == pytest.approx(0.5 * 2 * 2 / 8)
    assert share.proposal_weights(weights, images).rpn_box == pytest.approx(2 * 2 / 4)


def test_passes_divide_the_images_and_their_randomness() -> None:
    images = [image(8, 8, regions=i) for i in range(3)]
    whole = shares_of_step(images, passes=1, peers=Peers(), seed=1, step=4)
    parts = shares_of_step(images, passes=2, peers=Peers(), seed=1, step=4)
    assert [len(part) for part, _ in parts] == [1, 2]
    draws = [[torch.rand(1, generator=g).item() for _, s in some for g in s.generators] for some in (whole, parts)]
    assert draws[0] == draws[1]
    assert len(set(draws[0])) == 3
    factors = [share.region_weights(LossWeights(), part, [sampled(1, 9)], 1).rkd_l1 for part, share in parts]
    assert factors == pytest.approx([0.0, 15.0])
    # Of 3 processes the second has images 1 and 4 of the batch.
    second = OtherSays([8, 8, 1, 0, 0, 0])
    second.ranks = Ranks(rank=1, world_size=2)
    ((_, share),) = shares_of_step(images[:1], passes=1, peers=second, seed=1, step=4)
    assert torch.rand(1, generator=share.generators[0]).item() == draws[0][1]


def test_rows_of_others_join_without_gradient_and_ids_with_background() -> None:
    peers = OtherSays([8, 8, 1, 0, 0, 0], torch.full((1, 2), 7.0), torch.tensor([0, 1, 0, 0, 0, 1], dtype=torch.uint8))
    ((_, share),) = shares_of_step([image(8, 8)], passes=1, peers=peers, seed=0, step=0)
    own = torch.ones(2, 2, requires_grad=True)
    rows = share.everyones_rows(own)
    assert rows.tolist() == [[1, 1], [1, 1], [7, 7]]
    loss = share.for_all(rows.sum())
    loss.backward()
    assert loss.item() == 18  # the value is the loss itself, its gradient twice as large for the averaging
    assert own.grad is not None
    assert own.grad.tolist() == [[2, 2], [2, 2]]
    assert share.everyones_ids(torch.tensor([3, 3]), 5).tolist() == [1, 3, 5]
