"""Convolutions over points equal direct ones, at any size, and are taken only where they may be."""

from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector import winograd
from ovbridge.detector.backbone import ConvNorm, FrozenBatchNorm
from ovbridge.detector.winograd import LARGE, SMALL, Conv3x3, PointFilter, Tiling, by_points, points_pay

SIZES = [(1, 1, 1), (1, 3, 2), (2, 4, 4), (3, 5, 9), (2, 13, 17), (7, 7, 7), (1, 40, 37), (2, 6, 1), (1, 1, 30)]


def filter_of(generator: torch.Generator) -> tuple[Tensor, Tensor]:
    weight = torch.randn(6, 8, 3, 3, generator=generator) / (9 * 8) ** 0.5
    return weight, torch.randn(6, generator=generator)


@pytest.mark.parametrize("tiling", [SMALL, LARGE], ids=["F2", "F4"])
@pytest.mark.parametrize("held", [2**10, 2**14, 2**26])
@pytest.mark.parametrize(("batch", "height", "width"), SIZES)
def test_equals_a_direct_convolution(
    monkeypatch: pytest.MonkeyPatch,
    generator: torch.Generator,
    tiling: Tiling,
    held: int,
    batch: int,
    height: int,
    width: int,
) -> None:
    monkeypatch.setattr(winograd, "_HELD", held)
    weight, bias = filter_of(generator)
    x = torch.randn(batch, 8, height, width, generator=generator)
    made = PointFilter(weight, bias, torch.float32, tiling)(x)
    direct = F.conv2d(x.double(), weight.double(), bias.double(), padding=1)
    assert made.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(made.double(), direct, atol=2e-5, rtol=0)


def test_errors_are_those_that_the_text_names(generator: torch.Generator) -> None:
    weight = torch.randn(128, 128, 3, 3, generator=generator) / (9 * 128) ** 0.5
    x = torch.randn(1, 128, 40, 40, generator=generator).relu()
    direct = F.conv2d(x.double(), weight.double(), padding=1)
    size = direct.pow(2).mean().sqrt()

    def error(dtype: torch.dtype, tiling: Tiling) -> float:
        made = PointFilter(weight, None, dtype, tiling)(x)
        assert made.dtype == dtype
        return float((made.double() - direct).pow(2).mean().sqrt() / size)

    assert error(torch.float32, LARGE) < 5e-6
    assert error(torch.bfloat16, SMALL) < 0.008
    assert 0.008 < error(torch.bfloat16, LARGE) < 0.04


@pytest.fixture
def wide(generator: torch.Generator) -> tuple[Conv3x3, Tensor]:
    torch.manual_seed(0)
    return Conv3x3(128, 128), torch.randn(2, 128, 20, 24, generator=generator)


def test_a_layer_goes_over_points_only_inside_and_without_gradients(
    wide: tuple[Conv3x3, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, x = wide
    assert not points_pay(x, layer.weight)
    with by_points():
        assert not points_pay(x, layer.weight), "gradients are on"
        with torch.no_grad():
            assert points_pay(x, layer.weight)
            assert not points_pay(x[:1, :, :20, :20], layer.weight), "too few pixels"
            assert not points_pay(x, layer.weight[:64]), "too few channels"
            assert not points_pay(x.double(), layer.weight)
            with monkeypatch.context() as patch:
                patch.setattr(winograd, "_gathers_fast", lambda: False)
                assert not points_pay(x, layer.weight), "another kind of processor"
            elsewhere: list[bool] = []
            thread = threading.Thread(target=lambda: elsewhere.append(points_pay(x, layer.weight)))
            thread.start()
            thread.join()
            assert elsewhere == [False], "another thread has asked for nothing"
    assert not points_pay(x, layer.weight)


@torch.no_grad()
def test_a_layer_gives_the_same_and_follows_its_weights(wide: tuple[Conv3x3, Tensor]) -> None:
    layer, x = wide
    with by_points():
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=5e-5, rtol=0)
        twin = copy.deepcopy(layer)
        layer.weight.mul_(2.0)
        torch.testing.assert_close(layer(x), F.conv2d(x, layer.weight, layer.bias, padding=1), atol=1e-4, rtol=0)
        torch.testing.assert_close(twin(x), F.conv2d(x, twin.weight, twin.bias, padding=1), atol=5e-5, rtol=0)
        layer.load_state_dict(twin.state_dict())
        assert torch.equal(layer(x), twin(x))
    assert set(layer.state_dict()) == {"weight", "bias"}


@torch.no_grad()
def test_a_frozen_norm_is_folded_in(generator: torch.Generator) -> None:
    layer = ConvNorm(128, 128, 3, norm="frozen")
    assert isinstance(layer.norm, FrozenBatchNorm)
    x = torch.randn(1, 128, 30, 30, generator=generator)
    direct = layer(x)
    with by_points():
        torch.testing.assert_close(layer(x), direct, atol=3e-4, rtol=0)
        layer.norm.bias.add_(1.0)
        torch.testing.assert_close(layer(x), direct + 1.0, atol=3e-4, rtol=0)


@torch.no_grad()
def test_half_precision_takes_the_small_tile_unless_rough_will_do(wide: tuple[Conv3x3, Tensor]) -> None:
    layer, x = wide
    direct = layer(x)

    def error() -> float:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return float((layer(x).float() - direct).abs().mean() / direct.abs().mean())

    with by_points():
        fine = error()
        with by_points(rough=True):
            rough = error()
        assert error() == fine
    assert fine < 0.01 < rough < 0.05
