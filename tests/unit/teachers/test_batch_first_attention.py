"""Attention of CLIP's towers: the library's numbers without its copies of the weights."""

from __future__ import annotations

import copy
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from ovbridge.teachers.batch_first_attention import BatchFirstSelfAttention, keep_batches_first


class LargestOutput(TorchDispatchMode):
    """Remembers how many values the largest tensor had that any operation returned."""

    largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if isinstance(out, Tensor) and out.dtype == torch.bfloat16:
            self.largest = max(self.largest, out.numel())
        return out


def tower() -> nn.Module:
    torch.manual_seed(0)
    model = open_clip.model.CLIP(
        embed_dim=16,
        vision_cfg={"layers": 2, "width": 64, "head_width": 16, "patch_size": 8, "image_size": 32},
        text_cfg={"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 2},
    )
    return model.eval().requires_grad_(False)


def changed(model: nn.Module) -> nn.Module:
    other = copy.deepcopy(model)
    keep_batches_first(other)
    return other


def test_towers_give_the_same_embeddings() -> None:
    model = tower()
    ours = changed(model)
    assert sum(isinstance(m, BatchFirstSelfAttention) for m in ours.modules()) == 4
    assert ours.state_dict().keys() == model.state_dict().keys()
    pixels, tokens = torch.randn(3, 3, 32, 32), torch.randint(1, 50, (4, 8))
    with torch.inference_mode():
        torch.testing.assert_close(ours.encode_image(pixels), model.encode_image(pixels), atol=1e-5, rtol=1e-5)
        # The text tower's attention has a causal mask.
        torch.testing.assert_close(ours.encode_text(tokens), model.encode_text(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 5), (6, 5, 5)])
def test_masks_of_both_forms_count(shape: tuple[int, ...]) -> None:
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    ours = changed(nn.Sequential(theirs))[0]
    x = torch.randn(3, 5, 8)
    mask = torch.randn(shape)
    mask[..., 1:] = mask[..., 1:].masked_fill(torch.rand(mask[..., 1:].shape) < 0.4, float("-inf"))
    with torch.inference_mode():
        expected, _ = theirs(x, x, x, need_weights=False, attn_mask=mask)
        found, none = ours(x, x, x, need_weights=False, attn_mask=mask)
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
        assert none is None
        assert not torch.allclose(ours(x, x, x, need_weights=False)[0], expected, atol=1e-3)


def test_padded_tokens_are_not_read() -> None:
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    ours = changed(nn.Sequential(theirs))[0]
    x = torch.randn(3, 5, 8)
    padding = torch.tensor([[False] * 5, [False] * 4 + [True], [False] * 2 + [True] * 3])
    with torch.inference_mode():
        expected, _ = theirs(x, x, x, key_padding_mask=padding, need_weights=False)
        found, _ = ours(x, x, x, key_padding_mask=padding, need_weights=False)
        torch.testing.assert_close(found[~padding], expected[~padding], atol=1e-6, rtol=1e-5)


def test_what_is_no_self_attention_is_left_to_the_library() -> None:
    theirs = nn.MultiheadAttention(8, 2, batch_first=True).eval()
    ours = changed(nn.Sequential(theirs))[0]
    x, y = torch.randn(3, 5, 8), torch.randn(3, 4, 8)
    with torch.inference_mode():
        torch.testing.assert_close(ours(x, y, y)[0], theirs(x, y, y)[0])
        assert ours(x, x, x)[1] is not None
        torch.testing.assert_close(ours(x, x, x, need_weights=True)[1], theirs(x, x, x, need_weights=True)[1])
        padding = torch.tensor([[False] * 4 + [True]] * 3)
        causal = torch.zeros(5, 5).masked_fill(torch.ones(5, 5).triu(1).bool(), float("-inf"))
        both = {"key_padding_mask": padding, "attn_mask": causal, "need_weights": False}
        torch.testing.assert_close(ours(x, x, x, **both)[0], theirs(x, x, x, **both)[0])
    sequence_first = nn.Sequential(nn.MultiheadAttention(8, 2))
    assert type(changed(sequence_first)[0]) is nn.MultiheadAttention


def test_weights_are_not_copied_a_token() -> None:
    model = changed(tower())
    pixels = torch.randn(3, 3, 32, 32)
    largest = LargestOutput()
    with torch.inference_mode(), torch.autocast("cpu", dtype=torch.bfloat16), largest:
        model.encode_image(pixels)
    weights = max(p.numel() for p in model.visual.parameters())
    assert 0 < largest.largest <= weights
