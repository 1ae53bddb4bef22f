"""A model made ready to label is the same function."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch

from ovbridge.device import autocast, labelling_precision
from ovbridge.teachers.mavl import transformer
from ovbridge.teachers.mavl.config import BackboneConfig, MavlConfig, TextConfig
from ovbridge.teachers.mavl.inference import prepare_for_labelling
from ovbridge.teachers.mavl.model import EncodedImages, Mavl

CPU = torch.device("cpu")


def model(block: Literal["basic", "bottleneck"], norm: Literal["frozen", "batch"]) -> Mavl:
    torch.manual_seed(0)
    made = Mavl(
        MavlConfig(
            backbone=BackboneConfig(block=block, blocks=(1, 1, 2, 1), widths=(8, 8, 16, 16), norm=norm),
            text=TextConfig(
                vocabulary_size=40, hidden=16, layers=1, heads=2, feedforward=32, positions=20, dropout=0.0
            ),
            d_model=32,
            heads=2,
            encoder_layers=2,
            decoder_layers=1,
            fusion_layers=1,
            feedforward=32,
            levels=4,
            points=2,
            queries=12,
            token_positions=10,
            image_short_side=64,
            dropout=0.0,
        )
    )
    for name, tensor in made.backbone.state_dict().items():
        if "running_var" in name:
            tensor.uniform_(0.5, 2.0)
        elif tensor.ndim == 1:
            tensor.add_(0.1 * torch.randn(tensor.shape))
    return made.eval().requires_grad_(False)


def encoded(of: Mavl, precision: Literal["fp32", "bf16"] = "fp32") -> EncodedImages:
    pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode(), autocast(CPU, precision):
        return of.encode(pixels)


@pytest.mark.parametrize("block", ["basic", "bottleneck"])
@pytest.mark.parametrize("norm", ["frozen", "batch"])
def test_folding_changes_nothing(block: Literal["basic", "bottleneck"], norm: Literal["frozen", "batch"]) -> None:
    plain = model(block, norm)
    ready = prepare_for_labelling(copy.deepcopy(plain), "fp32")
    assert not any("running_var" in name for name in ready.state_dict())
    pixels = torch.randn(2, 3, 64, 96)
    with torch.inference_mode():
        for mine, theirs in zip(ready.backbone(pixels), plain.backbone(pixels), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    before, after = encoded(plain), encoded(ready)
    # Group norms of the coarsest level see two cells a group here and enlarge rounding.
    torch.testing.assert_close(after.memory, before.memory, rtol=1e-2, atol=2e-3)
    torch.testing.assert_close(after.decoded[-1], before.decoded[-1], rtol=1e-2, atol=2e-3)
    # Made ready twice is made ready.
    torch.testing.assert_close(encoded(prepare_for_labelling(ready, "fp32")).memory, after.memory)


def test_parts_of_the_tokens_give_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    made = model("bottleneck", "frozen")
    whole = encoded(made)
    monkeypatch.setattr(transformer, "TOKENS_AT_ONCE", 14)
    torch.testing.assert_close(encoded(made).memory, whole.memory, rtol=1e-5, atol=1e-5)
    with torch.enable_grad():
        pixels = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
        torch.testing.assert_close(made.encode(pixels).memory, whole.memory, rtol=1e-4, atol=1e-4)


def test_half_precision_keeps_the_residual_stream_and_the_norms_whole() -> None:
    plain = model("bottleneck", "frozen")
    ready = prepare_for_labelling(copy.deepcopy(plain), "bf16")
    kinds = {name: tensor.dtype for name, tensor in ready.state_dict().items()}
    assert kinds["backbone.conv1.weight"] == kinds["encoder.layers.0.linear1.weight"] == torch.bfloat16
    assert kinds["encoder.layers.0.norm1.weight"] == kinds["box_head.layers.2.weight"] == torch.float32
    before, after = encoded(plain), encoded(ready, "bf16")
    assert after.memory.dtype == after.reference.dtype == torch.float32
    cosine = torch.nn.functional.cosine_similarity(after.decoded[-1].float(), before.decoded[-1], dim=-1)
    assert float(cosine.min()) > 0.995


def test_auto_is_settled_before_anything_is_loaded() -> None:
    assert labelling_precision(CPU, "fp32") == "fp32"
    assert labelling_precision(CPU, "auto") in ("fp32", "bf16")
