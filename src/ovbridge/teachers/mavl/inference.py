"""A trained MAVL made ready to label: the same function with fewer passes over the image.

Batch norms with fixed statistics go into the convolution before them, convolutions keep channels innermost, and for
bf16 the weights of backbone and encoder are stored as bf16. Sampling, layer norms, the residual stream and all from the
decoder on stay fp32.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.ops import FrozenBatchNorm2d

from ovbridge.device import Precision
from ovbridge.teachers.batch_first_attention import keep_batches_first
from ovbridge.teachers.mavl.model import Mavl


def prepare_for_labelling(model: Mavl, precision: Precision) -> Mavl:
    """Change `model` in place, for inference only; returns it. Its tensors have other names afterwards.

    In fp32 outputs are those of before to rounding; `precision` bf16 needs an autocast context around the model.
    """
    _fold_batch_norms(model.backbone)
    keep_batches_first(model.fusion)
    image_side: tuple[nn.Module, ...] = (model.backbone, model.input_proj)
    for module in image_side:
        module.to(memory_format=torch.channels_last)
    if precision in ("bf16", "fp16"):
        # Autocast would convert the same weights anew for every image.
        dtype = torch.bfloat16 if precision == "bf16" else torch.float16
        for module in (*image_side, model.encoder):
            for part in module.modules():
                if isinstance(part, nn.Conv2d | nn.Linear):
                    part.to(dtype)
    return model.eval().requires_grad_(False)


@torch.no_grad()
def _fold_batch_norms(backbone: nn.Module) -> None:
    """Every batch norm that follows a convolution in order of registration goes into it."""
    for module in backbone.modules():
        before: nn.Conv2d | None = None
        for name, child in list(module.named_children()):
            if before is not None and isinstance(child, FrozenBatchNorm2d | nn.BatchNorm2d):
                _fold(before, child)
                setattr(module, name, nn.Identity())
            before = child if isinstance(child, nn.Conv2d) else None


def _fold(convolution: nn.Conv2d, norm: FrozenBatchNorm2d | nn.BatchNorm2d) -> None:
    statistics = (norm.weight, norm.bias, norm.running_mean, norm.running_var)
    gain, bias, mean, variance = (_there(t).double() for t in statistics)
    scale = gain * (variance + norm.eps).rsqrt()
    shift = bias - mean * scale
    if convolution.bias is not None:
        shift = shift + convolution.bias * scale
    weight = convolution.weight
    convolution.weight = nn.Parameter((weight.double() * scale.view(-1, 1, 1, 1)).to(weight.dtype))
    convolution.bias = nn.Parameter(shift.to(weight.dtype))


def _there(tensor: Tensor | None) -> Tensor:
    assert tensor is not None, "a batch norm without statistics cannot be folded"
    return tensor
