"""Which region a label is taught to, and the distillation losses beside the paper's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from ovbridge.detector import build_detector, to_weight_transfer, world_r18_fpn
from ovbridge.detector.config import TransferConfig
from ovbridge.detector.distillation_losses import barlow_twins_loss, info_nce_loss
from ovbridge.detector.rpn import BoxProposals
from ovbridge.structures import ImageLabels, Proposals, RegionTargets, TrainingImage
from ovbridge.teachers.largest_box import LargestBoxProposer
from ovbridge.training.label_boxes import own_label_boxes
from ovbridge.training.loss_weights import LossWeights
from ovbridge.training.objectives import image_label_losses

SMALL, WIDE = [0.0, 0, 10, 10], [0.0, 0, 40, 20]


def _image(class_ids: list[int], regions: bool = False) -> TrainingImage:
    generator = torch.Generator().manual_seed(len(class_ids))
    return TrainingImage(
        image_id=1,
        pixels=torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=generator),
        labels=ImageLabels(
            boxes_xyxy=torch.tensor([[5.0, 5, 50, 50]] * len(class_ids)).reshape(-1, 4),
            class_ids=torch.tensor(class_ids, dtype=torch.int64),
            scores=torch.ones(len(class_ids)),
        ),
        regions=RegionTargets(
            boxes_xyxy=torch.tensor([SMALL, WIDE]),
            embeddings=torch.randn(2, 8, generator=generator),
            scores=torch.ones(2),
        )
        if regions
        else None,
    )


def _head(logits: dict[int, list[float]]) -> Any:
    """A detector whose proposals are SMALL and WIDE in the first image and none in the second."""
    found = [
        BoxProposals(boxes_xyxy=torch.tensor([SMALL, WIDE]), logits=torch.zeros(2)),
        BoxProposals(boxes_xyxy=torch.zeros(0, 4), logits=torch.zeros(0)),
    ]

    class Rpn:
        def __call__(self, features: Any) -> None: ...
        def select(self, *_: Any, **__: Any) -> list[BoxProposals]:
            return found

    table_RK = torch.tensor([[logits[k][r] for k in sorted(logits)] for r in range(2)])
    head = SimpleNamespace(in_chunks=lambda _, rois: rois, logits=lambda rois: table_RK[: len(rois)])
    return SimpleNamespace(rpn=Rpn(), roi_head=head, config=SimpleNamespace(rpn=SimpleNamespace(pre_nms_train=5)))


def test_max_score_takes_the_best_proposal_of_each_label_and_max_size_the_largest() -> None:
    model: Any = _head({0: [2.0, 1.0], 1: [0.0, 3.0]})
    encoded: Any = SimpleNamespace(features=None, sizes=[(64, 64)] * 2)
    images = [_image([0, 1]), _image([0])]
    by_score = own_label_boxes(model, encoded, images, "max_score")
    assert by_score[0].tolist() == [SMALL, WIDE]
    assert by_score[1].tolist() == [[5.0, 5, 50, 50]], "without a proposal the stored box stays"
    assert own_label_boxes(model, encoded, images, "max_size")[0].tolist() == [WIDE, WIDE]


@pytest.mark.parametrize("rule", ["max_score", "max_size"])
def test_rules_train_through_the_objective(rule: Any) -> None:
    bank = torch.randn(5, 8, generator=torch.Generator().manual_seed(7))
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), bank).train()
    weights = LossWeights(rkd_l1=0, rkd_relation=0, rkd_barlow=1.0, rkd_info_nce=1.0, image_label_box=rule)
    found = image_label_losses(model, [_image([1, 2], regions=True), _image([3], regions=True)], weights=weights)
    assert set(found) == {"image_label", "rkd_barlow", "rkd_info_nce"}
    torch.stack(list(found.values())).sum().backward()
    assert model.roi_head.projection.linear.weight.grad is not None
    assert float(model.roi_head.projection.linear.weight.grad.abs().sum()) > 0


def test_barlow_twins_by_hand() -> None:
    # Two dimensions, four regions: the same standardised columns, uncorrelated with each other.
    x = torch.tensor([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])
    assert float(barlow_twins_loss(x, x)) == pytest.approx(0.0, abs=1e-6)
    assert float(barlow_twins_loss(x, 3 * x + 5)) == pytest.approx(0.0, abs=1e-6), "scale and shift do not count"
    # Swapped columns: the diagonal is 0 (loss 1 each), off-diagonal 1 each.
    assert float(barlow_twins_loss(x, x.flip(1), off_diagonal=0.5)) == pytest.approx((2 + 0.5 * 2) / 2)
    assert float(barlow_twins_loss(x[:1], x[:1])) == 0.0


def test_info_nce_by_hand() -> None:
    eye = torch.eye(2)
    expected = float(torch.log(1 + torch.exp(torch.tensor(-2.0))))  # -log(e^2 / (e^2 + 1)) at temperature 0.5
    assert float(info_nce_loss(eye, eye, temperature=0.5)) == pytest.approx(expected)
    assert float(info_nce_loss(eye, eye.flip(0), temperature=0.5)) == pytest.approx(expected + 2)
    assert float(info_nce_loss(eye[:1], eye[:1])) == 0.0


@pytest.mark.parametrize(
    ("transfer", "absent"),
    [
        (TransferConfig(hidden=6, residual_hidden=6, layers=1), "transfer2"),
        (TransferConfig(hidden=6, residual_hidden=6, layers=3), None),
        (TransferConfig(hidden=6, residual_hidden=6, residual=False), "residual1"),
        (TransferConfig(hidden=6, residual_hidden=6, freeze_distilled=False), None),
    ],
)
def test_transfer_variants(transfer: TransferConfig, absent: str | None) -> None:
    bank = torch.randn(3, 8, generator=torch.Generator().manual_seed(7))
    model = to_weight_transfer(build_detector(world_r18_fpn(embedding_dim=8), bank), transfer)
    projection: Any = model.roi_head.projection
    names = {name.split(".")[0] for name in projection.state_dict()}
    assert absent is None or absent not in names
    assert ("between" in names) == (transfer.layers == 3)
    assert projection.linear.weight.requires_grad is (not transfer.freeze_distilled)
    region_RF = torch.randn(2, 256, generator=torch.Generator().manual_seed(1))
    weight = projection.linear.weight
    slope = transfer.negative_slope
    expected = projection.transfer1(weight)
    for layer in [*projection.between, *([projection.transfer2] if transfer.layers > 1 else [])]:
        expected = layer(F.leaky_relu(expected, slope))
    out = region_RF @ expected.T
    if transfer.residual:
        out = out + projection.residual2(F.leaky_relu(projection.residual1(region_RF), slope))
    torch.testing.assert_close(projection(region_RF), out)


def test_the_largest_box_answers_for_every_name() -> None:
    class Inner:
        name, trained_on, digest = "grid", "nothing", "0"

        def propose(self, images: Any, queries: Any) -> list[list[Proposals]]:
            self.asked = queries
            boxes = torch.tensor([SMALL, WIDE])
            return [[Proposals(boxes_xyxy=boxes, scores=torch.tensor([0.9, 0.2])) for _ in q] for q in queries]

    import numpy as np

    inner = Inner()
    found = LargestBoxProposer(inner).propose(
        [np.zeros((20, 80, 3), np.uint8)] * 2, [["every mug", "all objects", "every kite"], ["all objects"]]
    )
    assert [len(f) for f in found] == [3, 1]
    for answer in (found[0][0], found[0][2]):
        assert answer.boxes_xyxy[0].tolist() == WIDE
        assert float(answer.scores[0]) == pytest.approx(0.5)
    assert found[0][1].boxes_xyxy[0].tolist() == SMALL
    assert [len(q) for q in inner.asked] == [5, 1], "the four class-agnostic queries are asked once an image"
