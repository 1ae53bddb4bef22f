"""Products through either library are the same."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional as F

from ovbridge.detector import products
from ovbridge.detector.products import linear


@pytest.mark.parametrize("rows", [0, 1, 33])
@pytest.mark.parametrize("with_bias", [False, True])
@torch.no_grad()
def test_equals_a_linear_layer(
    monkeypatch: pytest.MonkeyPatch, generator: torch.Generator, rows: int, with_bias: bool
) -> None:
    monkeypatch.setattr(products, "_LARGE", 0)
    x, weight = torch.randn(rows, 17, generator=generator), torch.randn(9, 17, generator=generator)
    bias = torch.randn(9, generator=generator) if with_bias else None
    made = linear(x, weight, bias)
    assert made.shape == (rows, 9)
    assert made.is_contiguous()
    torch.testing.assert_close(made, F.linear(x, weight, bias), atol=1e-5, rtol=1e-5)


def test_gradients_go_the_usual_way(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    monkeypatch.setattr(products, "_LARGE", 0)
    x = torch.randn(5, 7, generator=generator, requires_grad=True)
    weight = torch.randn(3, 7, generator=generator)
    linear(x, weight).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, weight.sum(dim=0).expand(5, 7))


@torch.no_grad()
def test_half_precision_stays_half(monkeypatch: pytest.MonkeyPatch, generator: torch.Generator) -> None:
    monkeypatch.setattr(products, "_LARGE", 0)
    x, weight = torch.randn(5, 7, generator=generator), torch.randn(3, 7, generator=generator)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert linear(x, weight).dtype == torch.bfloat16
    assert linear(x.bfloat16(), weight.bfloat16()).dtype == torch.bfloat16
