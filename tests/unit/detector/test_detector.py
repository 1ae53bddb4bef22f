"""The composed detector: shapes, determinism, batches, vocabularies, weight transfer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from ovbridge.detector import PostprocessConfig, TwoStageDetector, build_detector, to_weight_transfer, world_r18_fpn
from ovbridge.detector.config import PixelConfig
from ovbridge.detector.pixels import PixelNormalizer

MakeDetector = Callable[..., TwoStageDetector]
EVERYTHING = PostprocessConfig(score_threshold=0.0, max_detections=20)


def picture(height: int, width: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (3, height, width), dtype=torch.uint8, generator=generator)


def test_pixels_are_ordered_normalised_then_padded() -> None:
    pixels = PixelNormalizer(PixelConfig(mean=(1.0, 2.0, 3.0), std=(1.0, 2.0, 4.0), order="bgr", size_divisibility=4))
    first = torch.tensor([10, 20, 30], dtype=torch.uint8)[:, None, None].expand(3, 5, 3)
    batch, sizes = pixels([first, picture(2, 6)])
    assert batch.shape == (2, 3, 8, 8)
    assert sizes == [(5, 3), (2, 6)]
    assert batch[0, :, 0, 0].tolist() == [29.0, 9.0, 1.75]
    assert not batch[0, :, 5:].any()
    assert not batch[0, :, :, 3:].any()


def test_same_seed_same_weights_and_no_trace_in_the_global_state(tiny_detector: MakeDetector) -> None:
    state = torch.random.get_rng_state()
    first, second, other = tiny_detector(), tiny_detector(), tiny_detector(seed=1)
    assert torch.equal(torch.random.get_rng_state(), state)
    values = list(first.state_dict().values())
    assert all(torch.equal(a, b) for a, b in zip(values, second.state_dict().values(), strict=True))
    assert not torch.equal(first.rpn.conv.weight, other.rpn.conv.weight)
    assert all(torch.isfinite(value).all() for value in values)


def test_text_bank_of_another_width_is_refused() -> None:
    with pytest.raises(ValueError, match="width 9"):
        build_detector(world_r18_fpn(embedding_dim=8), torch.zeros(3, 9))


def test_detections_lie_in_the_image_best_first(tiny_detector: MakeDetector) -> None:
    (raw,) = tiny_detector().eval().detect([picture(50, 70)], postprocess=EVERYTHING)
    assert 0 < len(raw.scores) <= 20
    assert torch.equal(raw.scores, raw.scores.sort(descending=True).values)
    assert (raw.boxes_xyxy >= 0).all()
    assert (raw.boxes_xyxy <= torch.tensor([70, 50, 70, 50])).all()
    assert raw.mask_probabilities is None


def test_a_batch_gives_what_its_images_give_alone(tiny_detector: MakeDetector) -> None:
    model = tiny_detector().eval()
    images = [picture(64, 96, 1), picture(64, 96, 2)]
    together = model.detect(images, postprocess=EVERYTHING)
    for image, raw in zip(images, together, strict=True):
        (alone,) = model.detect([image], postprocess=EVERYTHING)
        assert torch.allclose(alone.scores, raw.scores, atol=1e-5)
        assert torch.allclose(alone.boxes_xyxy, raw.boxes_xyxy, atol=1e-2)


def test_a_vocabulary_for_one_call_leaves_the_stored_one(tiny_detector: MakeDetector) -> None:
    model = tiny_detector().eval()
    bank = torch.randn(3, 8, generator=torch.Generator().manual_seed(5)) * 9
    (once,) = model.detect([picture(64, 64)], postprocess=EVERYTHING, text_bank_KD=bank)
    assert model.num_classes == 5
    model.set_text_bank(bank)
    (stored,) = model.detect([picture(64, 64)], postprocess=EVERYTHING)
    assert torch.equal(once.scores, stored.scores)
    assert int(stored.class_ids.max()) < 3


def test_proposals_and_region_embeddings(tiny_detector: MakeDetector) -> None:
    model = tiny_detector().eval()
    images = [picture(64, 96), picture(48, 64)]
    proposals = model.propose(images, 7)
    assert [len(p) for p in proposals] == [7, 7]
    assert (proposals[0].scores.diff() <= 0).all()
    embeddings = model.region_embeddings(images, [p.boxes_xyxy for p in proposals])
    assert [tuple(e.shape) for e in embeddings] == [(7, 8), (7, 8)]
    assert torch.allclose(embeddings[1].norm(dim=1), torch.ones(7))
    nothing = model.region_embeddings(images, [torch.zeros(0, 4)] * 2)
    assert [len(e) for e in nothing] == [0, 0]


def test_weight_transfer_keeps_everything_but_the_projection(tiny_detector: MakeDetector) -> None:
    model = tiny_detector()
    linear = model.roi_head.projection.linear.weight.detach().clone()
    transferred = to_weight_transfer(model, seed=2)
    again = to_weight_transfer(tiny_detector(), seed=2)
    assert transferred.config.projection.transfer is not None
    assert transferred.backbone is model.backbone
    assert torch.equal(transferred.roi_head.projection.linear.weight, linear)
    new = {name for name in transferred.state_dict() if name not in model.state_dict()}
    assert {name.rsplit(".", 1)[0] for name in new} == {
        f"roi_head.projection.{layer}" for layer in ("transfer1", "transfer2", "residual1", "residual2")
    }
    assert all(torch.equal(transferred.state_dict()[name], again.state_dict()[name]) for name in new)
    with pytest.raises(ValueError, match="already"):
        to_weight_transfer(transferred)
