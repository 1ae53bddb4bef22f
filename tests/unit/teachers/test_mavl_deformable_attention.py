"""Multi-scale deformable attention against a loop that follows the equation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ovbridge.teachers.mavl.deformable_attention import DeformableAttention, deformable_sample

SHAPES = ((3, 4), (2, 2))


def bilinear(feature_HWD: Tensor, x: float, y: float) -> Tensor:
    """The value at (x, y) in pixels, cell centres at half-integers, zero outside."""
    rows, columns, _ = feature_HWD.shape
    out = torch.zeros(feature_HWD.shape[2], dtype=feature_HWD.dtype)
    left, top = math.floor(x - 0.5), math.floor(y - 0.5)
    for row in (top, top + 1):
        for column in (left, left + 1):
            weight = (1 - abs(x - 0.5 - column)) * (1 - abs(y - 0.5 - row))
            if 0 <= row < rows and 0 <= column < columns:
                out += weight * feature_HWD[row, column]
    return out


def test_sampling_matches_the_equation(generator: torch.Generator) -> None:
    n, q, h, d, points = 2, 3, 2, 5, 2
    value = torch.randn(n, 16, h, d, generator=generator, dtype=torch.float64)
    locations = torch.rand(n, q, h, 2, points, 2, generator=generator, dtype=torch.float64) * 1.4 - 0.2
    weights = torch.rand(n, q, h, 2, points, generator=generator, dtype=torch.float64)
    expected = torch.zeros(n, q, h, d, dtype=torch.float64)
    for i in range(n):
        for head in range(h):
            levels = value[i, :12, head].reshape(3, 4, d), value[i, 12:, head].reshape(2, 2, d)
            for query in range(q):
                for level, feature in enumerate(levels):
                    for p in range(points):
                        x, y = locations[i, query, head, level, p].tolist()
                        sample = bilinear(feature, x * feature.shape[1], y * feature.shape[0])
                        expected[i, query, head] += weights[i, query, head, level, p] * sample
    torch.testing.assert_close(deformable_sample(value, SHAPES, locations, weights), expected.flatten(2))


def test_gradients_are_those_of_the_function(generator: torch.Generator) -> None:
    value = torch.randn(1, 16, 1, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    locations = (torch.rand(1, 2, 1, 2, 1, 2, generator=generator, dtype=torch.float64) * 0.6 + 0.2).requires_grad_()
    weights = torch.rand(1, 2, 1, 2, 1, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda *x: deformable_sample(x[0], SHAPES, x[1], x[2]), (value, locations, weights))


def test_fresh_offsets_form_a_star() -> None:
    attention = DeformableAttention(d_model=8, heads=4, levels=2, points=3)
    offsets = attention.sampling_offsets.bias.detach().view(4, 2, 3, 2)
    torch.testing.assert_close(offsets[0, 0], torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]]))
    torch.testing.assert_close(offsets[1, 1, 1], torch.tensor([0.0, 2.0]), atol=1e-6, rtol=0)
    assert attention.sampling_offsets.weight.abs().max() == 0


@pytest.mark.parametrize("padded_value", [0.0, 1e6])
def test_padding_is_never_read(padded_value: float, generator: torch.Generator) -> None:
    attention = DeformableAttention(d_model=8, heads=2, levels=2, points=2)
    tokens = torch.randn(1, 16, 8, generator=generator)
    padding = torch.zeros(1, 16, dtype=torch.bool)
    padding[0, [3, 7, 11]] = True
    query, reference = torch.randn(1, 5, 8, generator=generator), torch.rand(1, 5, 2, 2, generator=generator)
    changed = torch.where(padding.unsqueeze(-1), padded_value, tokens)
    torch.testing.assert_close(
        attention(query, reference, changed, SHAPES, padding), attention(query, reference, tokens, SHAPES, padding)
    )


@pytest.mark.parametrize("images", [1, 3])
def test_a_table_gives_the_sums_of_the_grid(images: int, generator: torch.Generator) -> None:
    shapes = ((5, 7), (3, 4), (2, 1))
    attention = DeformableAttention(d_model=12, heads=3, levels=3, points=2)
    with torch.no_grad():
        attention.sampling_offsets.weight.normal_(generator=generator)
        attention.attention_weights.weight.normal_(generator=generator)
    tokens = torch.randn(images, 49, 12, generator=generator)
    padding = torch.zeros(images, 49, dtype=torch.bool)
    padding[0, 5:9] = True
    # Far outside and on the borders as well.
    reference = torch.rand(images, 30, 3, 2, generator=generator) * 3.0 - 1.0
    reference[:, :4] = torch.tensor([[0.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-9.0, 9.0]])[:, None]
    query = torch.randn(images, 30, 12, generator=generator)
    query[:, :2] = 0.0
    expected = attention(query, reference, tokens, shapes, padding).detach()
    with torch.no_grad():
        torch.testing.assert_close(attention(query, reference, tokens, shapes, padding), expected)
        parts = attention.reader(tokens, shapes, padding)
        found = torch.cat([parts(query[:, :17], reference[:, :17]), parts(query[:, 17:], reference[:, 17:])], dim=1)
    torch.testing.assert_close(found, expected)
