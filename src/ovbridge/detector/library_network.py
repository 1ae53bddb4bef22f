"""Image classifiers of torchvision and timm, taken apart into a stem and four stages of stride 4, 8, 16, 32."""

from __future__ import annotations

import contextlib
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ovbridge.errors import ConfigError

PLAIN_RESNETS = {
    "resnet18": ("basic", (2, 2, 2, 2)),
    "resnet34": ("basic", (3, 4, 6, 3)),
    "resnet50": ("bottleneck", (3, 4, 6, 3)),
    "resnet101": ("bottleneck", (3, 4, 23, 3)),
    "resnet152": ("bottleneck", (3, 8, 36, 3)),
}
"""Networks that `backbone.ResNet` is, with stride in the 3x3: block, depths. Its frozen norms are folded."""

_STRIDES = (4, 8, 16, 32)


@dataclass(frozen=True, kw_only=True)
class StagedNetwork:
    """A classifier in pieces, with random weights."""

    stem: nn.Module
    stages: tuple[nn.Module, ...]
    """Four, of stride 4, 8, 16 and 32."""
    channels: tuple[int, ...]
    """Of each stage's output."""
    channels_last: bool
    """Stem and stages hand on [B, H, W, C]."""
    batch_norm: bool
    """Its features are normalised as they come; without batch norm every output stage gets a layer norm."""
    prefixes: tuple[tuple[str, str], ...]
    """(the library's name of a piece, ours): "layer1." is "stages.2."."""
    mean: tuple[float, float, float]
    """RGB, 0..255: what its pretrained weights expect."""
    std: tuple[float, float, float]
    """As `mean`."""


def check_network_name(name: str) -> tuple[str, str]:
    """("timm" | "torchvision", model name); raises ConfigError for any other form.

    Names come out of checkpoints too, so nothing that a library would look up on a hub passes.
    """
    found = re.fullmatch(r"(timm|torchvision)/([a-z0-9_]+)", name)
    if not found:
        raise ConfigError(f"backbone network {name!r} is not of the form timm/convnext_tiny or torchvision/swin_t")
    return found[1], found[2]


class _WithoutRandomValues(TorchFunctionMode):
    """Leaves out the drawing of initial weights, which takes seconds where they are about to be overwritten."""

    _DRAWS = frozenset({Tensor.uniform_, Tensor.normal_, Tensor.erfinv_, nn.init.trunc_normal_})

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func in self._DRAWS:
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def staged_network(name: str, *, values: bool = True) -> StagedNetwork:
    """The network `name` ("timm/convnext_tiny", "torchvision/swin_t") with random weights, on the CPU.

    Without `values` the weights are undefined, to be overwritten; tables that the network computes are there.
    Raises ConfigError where the library or the network is missing, or has no four stages that can be told apart.
    """
    library, model_name = check_network_name(name)
    with contextlib.nullcontext() if values else _WithoutRandomValues():
        network, mean, std = _timm(model_name) if library == "timm" else _torchvision(model_name)
    found = _pieces(network)
    if found is None:
        raise ConfigError(f"{name} has no stem and four stages that can be told apart: take a ResNet, ConvNeXt or Swin")
    stem, stages, prefixes = found
    channels_last = "swin" in type(network).__name__.lower()
    return StagedNetwork(
        stem=stem,
        stages=stages,
        channels=_checked_channels(name, stem, stages, channels_last),
        channels_last=channels_last,
        batch_norm=any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in network.modules()),
        prefixes=prefixes,
        mean=mean,
        std=std,
    )


_Statistics = tuple[float, float, float]


def _of_255(values: Any) -> _Statistics:
    first, second, third = (round(255.0 * float(value), 3) for value in values)
    return first, second, third


def _timm(name: str) -> tuple[nn.Module, _Statistics, _Statistics]:
    try:
        import timm
    except ImportError:
        raise ConfigError(f"backbone timm/{name} needs timm: pip install 'ovbridge[hf]'") from None
    if not timm.is_model(name):
        near = ", ".join(timm.list_models(f"*{name.split('_')[0]}*")[:3])
        raise ConfigError(f"timm has no model {name!r}" + (f": did you mean one of {near}?" if near else ""))
    options: dict[str, Any] = {"pretrained": False, "num_classes": 0}
    if name.startswith("swin"):
        options["strict_img_size"] = False
    network: Any = timm.create_model(name, **options)
    _without_stochastic_depth(network)
    return network, _of_255(network.pretrained_cfg["mean"]), _of_255(network.pretrained_cfg["std"])


def _torchvision(name: str) -> tuple[nn.Module, _Statistics, _Statistics]:
    from torchvision import models

    known = models.list_models(module=models)
    if name not in known:
        raise ConfigError(f"torchvision has no classifier {name!r}: it has {', '.join(known[:3])}, ..., swin_t")
    network = models.get_model(name, weights=None)
    _without_stochastic_depth(network)
    return network, _of_255((0.485, 0.456, 0.406)), _of_255((0.229, 0.224, 0.225))


def _without_stochastic_depth(network: nn.Module) -> None:
    # It would draw from the global random state, on which no resumed run could rely.
    for module in network.modules():
        if type(module).__name__ == "StochasticDepth":
            cast(Any, module).p = 0.0
        elif type(module).__name__ == "DropPath":
            cast(Any, module).drop_prob = 0.0


_Pieces = tuple[nn.Module, tuple[nn.Module, ...], tuple[tuple[str, str], ...]]


def _pieces(network: nn.Module) -> _Pieces | None:
    children = dict(network.named_children())
    if "layer4" in children:
        before = OrderedDict((name, part) for name, part in _until(children, "layer1"))
        layers = tuple(children[f"layer{i}"] for i in range(1, 5))
        renamed = [(f"{name}.", f"stem.{name}.") for name in before]
        return nn.Sequential(before), layers, (*renamed, *((f"layer{i}.", f"stages.{i + 1}.") for i in range(1, 5)))
    for stem, rest in (("stem", "stages"), ("patch_embed", "layers")):
        if stem in children and rest in children and len(list(children[rest].children())) == 4:
            stages = tuple(children[rest].children())
            numbered = tuple((f"{rest}.{i}.", f"stages.{i + 2}.") for i in range(4))
            return children[stem], stages, ((f"{stem}.", "stem."), *numbered)
    features = children.get("features")
    if isinstance(features, nn.Sequential) and len(features) == 8:
        # torchvision's ConvNeXt and Swin: stem, then blocks, then three times (reduction, blocks).
        reduced = tuple(nn.Sequential(features[2 * i], features[2 * i + 1]) for i in range(1, 4))
        pairs = [(f"features.{2 * i + k}.", f"stages.{i + 2}.{k}.") for i in range(1, 4) for k in range(2)]
        first = nn.Sequential(features[1])
        return features[0], (first, *reduced), (("features.0.", "stem."), ("features.1.", "stages.2.0."), *pairs)
    return None


def _until(children: dict[str, nn.Module], last: str) -> list[tuple[str, nn.Module]]:
    names = list(children)
    return [(name, children[name]) for name in names[: names.index(last)]]


@torch.no_grad()
def _checked_channels(
    name: str, stem: nn.Module, stages: tuple[nn.Module, ...], channels_last: bool
) -> tuple[int, ...]:
    side = 64
    x = cast(Tensor, stem.eval()(torch.zeros(1, 3, side, side)))
    channels = []
    for stage, stride in zip(stages, _STRIDES, strict=True):
        x = stage.eval()(x)
        height, width, depth = x.shape[1:] if channels_last else (*x.shape[2:], x.shape[1])
        if (height, width) != (side // stride, side // stride):
            raise ConfigError(f"{name} has stride {side // int(height)} where {stride} is needed: take another network")
        channels.append(int(depth))
    return tuple(channels)
