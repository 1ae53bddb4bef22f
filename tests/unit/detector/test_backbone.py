"""Backbones: frozen norms are folded without changing anything, what is frozen stays, shapes and strides."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch.nn import functional as F

from ovbridge.detector.backbone import ConvNorm, FrozenBatchNorm, PyramidBackbone, ResNet, folded_once, set_norm_eval


def small(norm: str = "frozen", freeze_at: int = 0) -> ResNet:
    return ResNet(
        stem_channels=8,
        depths=(1, 2, 1),
        channels=(8, 16, 24),
        out_stages=(3, 4),
        block="basic",
        norm=norm,  # type: ignore[arg-type]
        stride_in_1x1=False,
        freeze_at=freeze_at,
    )


def test_frozen_norm_is_batch_norm_with_constants(generator: torch.Generator) -> None:
    layer = ConvNorm(3, 5, 3, stride=2, norm="frozen")
    assert isinstance(layer.norm, FrozenBatchNorm)
    for name, buffer in layer.norm.named_buffers():
        buffer.copy_(torch.rand(5, generator=generator) + (0.5 if name == "running_var" else 0.0))
    x = torch.randn(2, 3, 9, 9, generator=generator)
    plain = F.batch_norm(
        F.conv2d(x, layer.weight, stride=2, padding=1),
        layer.norm.running_mean,
        layer.norm.running_var,
        layer.norm.weight,
        layer.norm.bias,
        training=False,
        eps=1e-5,
    )
    assert torch.allclose(layer(x), plain, atol=1e-5)
    assert [name for name, _ in layer.named_parameters()] == ["weight"]


def test_strides_and_channels_describe_the_maps() -> None:
    body = small()
    assert (body.strides, body.channels) == ((8, 16), (16, 24))
    features = body(torch.zeros(1, 3, 64, 96))
    assert [tuple(f.shape) for f in features] == [(1, 16, 8, 12), (1, 24, 4, 6)]
    pyramid = PyramidBackbone(body, channels=6, extra_level=True)
    levels = pyramid(torch.zeros(1, 3, 64, 96))
    assert pyramid.strides == (8, 16, 32)
    assert [tuple(f.shape) for f in levels] == [(1, 6, 8, 12), (1, 6, 4, 6), (1, 6, 2, 3)]
    assert torch.equal(levels[2], levels[1][:, :, ::2, ::2])


def test_bottlenecks_stride_where_they_are_told() -> None:
    for in_1x1, first, second in ((True, 2, 1), (False, 1, 2)):
        body = ResNet(
            stem_channels=8,
            depths=(1, 1),
            channels=(16, 32),
            out_stages=(3,),
            block="bottleneck",
            norm="frozen",
            stride_in_1x1=in_1x1,
            freeze_at=0,
        )
        block = body.stages["3"][0]  # type: ignore[index]
        assert (block.conv1.stride, block.conv2.stride) == (first, second)
        assert body(torch.zeros(1, 3, 32, 32))[0].shape == (1, 32, 4, 4)


def test_freeze_at_takes_the_gradient_from_stem_and_early_stages() -> None:
    body = small(freeze_at=2)
    frozen = {
        name.split(".")[0] + "." + name.split(".")[1] for name, p in body.named_parameters() if not p.requires_grad
    }
    assert frozen == {"stem.weight", "stages.2"}
    assert all(p.requires_grad for p in small(freeze_at=0).parameters())


def test_set_norm_eval_stops_running_statistics() -> None:
    body = small(norm="batch").train()
    set_norm_eval(body)
    before = body.stem.norm.running_mean.clone()
    body(torch.randn(2, 3, 32, 32))
    assert torch.equal(body.stem.norm.running_mean, before)
    assert body.training
    body.train()(torch.randn(2, 3, 32, 32))
    assert not torch.equal(body.stem.norm.running_mean, before)


@pytest.mark.parametrize("inputs", [8, 32])
def test_a_strided_1x1_convolution_over_few_channels_is_the_same(inputs: int) -> None:
    layer = ConvNorm(inputs, 12, 1, stride=2, norm="frozen")
    x = torch.randn(2, inputs, 9, 14).contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(layer(x), F.conv2d(x, *layer.folded(), stride=2), rtol=1e-5, atol=1e-5)


def test_norms_are_folded_once_inside_and_anew_outside() -> None:
    layer = ConvNorm(4, 6, 3, norm="frozen")
    x = torch.randn(1, 4, 5, 5)
    with torch.no_grad():
        before = layer(x)
        with folded_once(layer):
            layer.weight.add_(1.0)
            torch.testing.assert_close(layer(x), before)
        assert not torch.allclose(layer(x), before)
        with torch.autocast("cpu", dtype=torch.bfloat16), folded_once(layer):
            assert layer.folded()[0].dtype == torch.bfloat16
    assert layer.kept is None


def test_passes_of_several_threads_over_one_model_do_not_disturb_each_other() -> None:
    layer = ConvNorm(4, 6, 3, norm="frozen").requires_grad_(False)
    x = torch.randn(1, 4, 5, 5)
    expected = layer(x)

    def often(_: int) -> bool:
        same = True
        for _ in range(200):
            with folded_once(layer):
                same &= torch.allclose(layer(x), expected, atol=1e-6)
        return same

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(often, range(4)))


def test_levels_are_merged_alike_with_and_without_gradients(generator: torch.Generator) -> None:
    pyramid = PyramidBackbone(
        ResNet(
            stem_channels=4,
            depths=(1, 1, 1),
            channels=(8, 8, 8),
            out_stages=(2, 3, 4),
            block="basic",
            norm="frozen",
            stride_in_1x1=True,
            freeze_at=0,
        ),
        channels=6,
        extra_level=True,
    )
    x = torch.randn(1, 3, 32, 64, generator=generator)
    for layout in (torch.contiguous_format, torch.channels_last):
        pixels = x.contiguous(memory_format=layout)
        learning = pyramid(pixels)
        with torch.no_grad():
            using = pyramid(pixels)
        for ours, theirs in zip(using, learning, strict=True):
            torch.testing.assert_close(ours, theirs)
