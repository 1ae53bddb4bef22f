"""The composed model: sharing between texts, padding, where queries start."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from ovbridge.errors import CheckpointError
from ovbridge.teachers.mavl.backbone import InputProjections, sine_position
from ovbridge.teachers.mavl.config import BackboneConfig, MavlConfig, TextConfig, mavl_full, mavl_small
from ovbridge.teachers.mavl.model import Mavl, inverse_sigmoid, spread_points
from ovbridge.teachers.mavl.text import PADDING_ID, pad_tokens

TINY = MavlConfig(
    backbone=BackboneConfig(block="basic", blocks=(1, 1, 1, 1), widths=(8, 8, 16, 16), norm="batch"),
    text=TextConfig(vocabulary_size=40, hidden=16, layers=1, heads=2, feedforward=32, positions=20, dropout=0.0),
    d_model=32,
    heads=2,
    encoder_layers=1,
    decoder_layers=2,
    fusion_layers=2,
    feedforward=32,
    levels=4,
    points=2,
    queries=12,
    token_positions=10,
    image_short_side=64,
    dropout=0.0,
)


@pytest.fixture
def model() -> Mavl:
    torch.manual_seed(0)
    model = Mavl(TINY).eval()
    # Fresh heads and offsets are constants, which would hide mistakes.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape))
    return model


@torch.no_grad()
def answers(
    model: Mavl, pixels: torch.Tensor, padding: torch.Tensor | None, rows: list[list[int]], images: list[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    encoded = model.encode(pixels, padding)
    ids, word_padding = pad_tokens(rows)
    index = torch.tensor(images)
    states = model.fuse(encoded, index, model.encode_text(ids, word_padding), word_padding)[-1]
    return model.token_logits(states), model.boxes(states, encoded.reference[index])


def test_texts_of_one_image_do_not_meet(model: Mavl, generator: torch.Generator) -> None:
    pixels = torch.randn(2, 3, 64, 96, generator=generator)
    short, long = [0, 5, 2], [0, 6, 7, 8, 9, 2]
    together, _ = answers(model, pixels, None, [short, long, short], [0, 0, 1])
    alone, _ = answers(model, pixels[:1], None, [short], [0])
    torch.testing.assert_close(together[0], alone[0], atol=1e-5, rtol=1e-5)
    assert (together[0] - together[1]).abs().max() > 1e-3
    assert (together[0] - together[2]).abs().max() > 1e-3


def test_padding_an_image_moves_nothing(model: Mavl, generator: torch.Generator) -> None:
    """Sizes are multiples of 64, so that every level is cut at the image's border; boxes stay relative to the image."""
    image = torch.randn(1, 3, 64, 128, generator=generator)
    padded, padding = torch.zeros(1, 3, 128, 192), torch.ones(1, 128, 192, dtype=torch.bool)
    padded[:, :, :64, :128], padding[:, :64, :128] = image, False
    model.backbone = torch.nn.Module()
    features = [torch.randn(1, c, 64 // s, 128 // s, generator=generator) for c, s in ((8, 8), (16, 16), (16, 32))]
    # The convolutions themselves see the border; what follows must not.
    features_padded = [torch.nn.functional.pad(f, (0, f.shape[3] // 2, 0, f.shape[2])).contiguous() for f in features]
    model.input_proj = _NoNorm(model.input_proj)
    model.backbone.forward = lambda pixels: features_padded if pixels.shape[2] == 128 else features  # type: ignore[method-assign]
    logits, boxes = answers(model, image, None, [[0, 5, 2]], [0])
    logits_padded, boxes_padded = answers(model, padded, padding, [[0, 5, 2]], [0])
    torch.testing.assert_close(boxes_padded, boxes, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits_padded, logits, atol=1e-4, rtol=1e-4)


class _NoNorm(torch.nn.Module):
    """The input projections without group normalisation, whose statistics include the padding."""

    def __init__(self, projections: InputProjections) -> None:
        super().__init__()
        self.convolutions = torch.nn.ModuleList(p[0] for p in projections)  # type: ignore[index]

    def forward(self, features: list[torch.Tensor]) -> list[torch.Tensor]:
        return [conv(x) for conv, x in zip(self.convolutions, [*features, features[-1]], strict=True)]


def test_fourth_level_reads_raw_stride_32(generator: torch.Generator) -> None:
    projections = InputProjections((4, 8, 16), 32, 4)
    features = [torch.randn(1, c, s, s, generator=generator) for c, s in ((4, 16), (8, 8), (16, 4))]
    levels = projections(features)
    assert [tuple(level.shape[2:]) for level in levels] == [(16, 16), (8, 8), (4, 4), (2, 2)]
    torch.testing.assert_close(levels[3], projections[3](features[2]))


def test_queries_start_on_an_even_grid() -> None:
    fresh = Mavl(TINY).eval()
    encoded = fresh.encode(torch.zeros(1, 3, 64, 96))
    torch.testing.assert_close(encoded.reference[0], spread_points(12), atol=1e-5, rtol=0)
    boxes = fresh.boxes(encoded.decoded[-1], encoded.reference)[0]
    torch.testing.assert_close(boxes[:, :2], spread_points(12), atol=1e-5, rtol=0)
    assert boxes[:, 2:].min() > 0.1
    assert boxes[:, 2:].max() < 0.25


@pytest.mark.parametrize("count", [1, 7, 100, 300])
def test_spread_points_are_distinct_and_inside(count: int) -> None:
    points = spread_points(count)
    assert points.shape == (count, 2)
    assert len({tuple(p) for p in points.tolist()}) == count
    assert points.min() > 0
    assert points.max() < 1


def test_sine_position_counts_from_one_and_ends_at_two_pi() -> None:
    padding = torch.zeros(1, 2, 5, dtype=torch.bool)
    padding[:, :, 4:] = True
    position = sine_position(padding, 8)[0]
    # Channel 0 is sin(row phase), channel 4 sin(column phase) at wavelength 1.
    torch.testing.assert_close(position[0, :, 0], torch.tensor([torch.pi, 2 * torch.pi]).sin(), atol=1e-5, rtol=0)
    torch.testing.assert_close(position[4, 0, :4], (torch.arange(1, 5) / 4 * 2 * torch.pi).sin(), atol=1e-5, rtol=0)


def test_inverse_sigmoid_undoes_sigmoid_and_is_finite() -> None:
    x = torch.tensor([-3.0, 0.0, 2.0])
    torch.testing.assert_close(inverse_sigmoid(x.sigmoid()), x)
    assert inverse_sigmoid(torch.tensor([0.0, 1.0])).isfinite().all()


def test_text_padding_does_not_change_a_text(model: Mavl) -> None:
    ids, padding = pad_tokens([[0, 5, 2], [0, 6, 7, 8, 2]])
    assert ids[0, 3] == PADDING_ID
    with torch.no_grad():
        together = model.encode_text(ids, padding)[0, :3]
        alone = model.encode_text(*pad_tokens([[0, 5, 2]]))[0]
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("config", [TINY, mavl_small(), mavl_full()])
def test_config_survives_json(config: MavlConfig) -> None:
    assert MavlConfig.from_json(config.to_json()) == config


def test_config_of_a_newer_version_is_refused() -> None:
    text = TINY.to_json().replace('"d_model"', '"d_modell"')
    with pytest.raises(CheckpointError, match="d_modell"):
        MavlConfig.from_json(text)


def test_small_model_fits_its_budget() -> None:
    with torch.device("meta"):
        model = Mavl(replace(mavl_small(), queries=100))
    assert sum(p.numel() for p in model.parameters()) < 3_200_000
