"""`ovbridge convert`: official weights become a file of ours."""

from __future__ import annotations

import json as json_format
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ovbridge.cli.arguments import call

if TYPE_CHECKING:
    from torch import Tensor

EXAMPLES = """\
ovbridge convert coco_ovd_rkd_pis_weighttransfer.pth coco.safetensors
ovbridge convert lvis_ovd_base.pth lvis.safetensors --json
ovbridge convert R-50.pkl msra_r50.safetensors
ovbridge convert convnext_tiny.safetensors backbone.safetensors --network timm/convnext_tiny
ovbridge convert MDef_DETR_r101_epoch20.pth mavl.safetensors"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(convert, argv, verb="convert", examples=EXAMPLES)


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    names: Path | None = None,
    network: str | None = None,
    json: bool = False,
) -> None:
    """Turn official weights into a safetensors file, without executing anything in them.

    Recognises the released COCO and LVIS detectors, with linear and with transferred projection; ImageNet weights to
    start training from (Detectron2's R-50.pkl, a ResNet of torchvision or timm, with --network other networks); MAVL.
    Every tensor is used or reported.

    Args:
        source: The .pth, .pkl or .safetensors file.
        target: The file to write.
        names: Class names of another vocabulary: a JSON list of records with id and name, or one name a line.
        network: What ImageNet weights are of: timm/convnext_tiny, torchvision/swin_t, timm/resnet50, ...
        json: Print the result as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.detector.imagenet_weights import is_imagenet_classifier
    from ovbridge.detector.weight_files import read_weights
    from ovbridge.errors import ConfigError

    tensors, author = read_weights(source)
    is_backbone = network is not None or is_imagenet_classifier(tensors)
    is_mavl = "transformer.level_embed" in tensors
    if names is not None and (is_backbone or is_mavl):
        what = "MAVL" if is_mavl else "ImageNet weights"
        raise ConfigError(f"{source} holds {what}, which have no class names: leave --names out")
    if is_backbone:
        result = _backbone(tensors, author, source, target, network)
    elif is_mavl:
        result = _mavl(tensors, source, target)
    else:
        result = _detector(tensors, source, target, names)
    if json:
        print(json_format.dumps(result))
        return
    stdout.print(result["summary"], soft_wrap=True)
    for name, reason in result["tensors"]["reported"].items():
        stdout.print(f"  {name}: {reason}", soft_wrap=True)
    stdout.print(f"written to {target}", soft_wrap=True)


def _detector(tensors: Mapping[str, Tensor], source: Path, target: Path, names: Path | None) -> dict[str, Any]:
    from ovbridge.detector.checkpoint_file import DetectorMetadata, refuse_foreign_target, save_detector
    from ovbridge.detector.checkpoint_map import map_official
    from ovbridge.vocabulary.released import released_vocabulary, with_training_boxes
    from ovbridge.vocabulary.text_bank import PAPER_TEMPLATE, TextBank

    refuse_foreign_target(target)
    mapped = map_official(tensors)
    model = mapped.model
    vocabulary = with_training_boxes(released_vocabulary(model.num_classes, names), mapped.has_training_boxes)
    bank = TextBank(
        names=vocabulary.names,
        embeddings_KD=model.roi_head.classifier.text_KD,
        encoder="open_clip:ViT-B-32-quickgelu/openai",
        templates=(PAPER_TEMPLATE,),
    )
    metadata = DetectorMetadata(
        stage=mapped.stage,
        vocabulary=tuple(vocabulary.to_json()),
        text_encoder=bank.encoder,
        templates=bank.templates,
        recipe=f"converted from {source.name}",
    )
    save_detector(target, model, metadata)
    projection = "weight transfer" if model.config.projection.transfer else "linear"
    return {
        "source": str(source),
        "target": str(target),
        "architecture": model.config.name,
        "projection": projection,
        "stage": mapped.stage,
        "classes": {role: len(vocabulary.columns(role)) for role in ("base", "novel", "unused")},
        "tensors": {"used": len(mapped.used), "reported": mapped.reported},
        "text_encoder": bank.encoder,
        "summary": f"{model.config.name}, {projection} projection, {len(vocabulary)} classes: "
        f"{len(mapped.used)} tensors used",
    }


def _backbone(
    tensors: Mapping[str, Tensor], author: str, source: Path, target: Path, network: str | None
) -> dict[str, Any]:
    from ovbridge.detector.imagenet_weights import map_imagenet
    from ovbridge.detector.pretrained import read_backbone_header, write_backbone
    from ovbridge.errors import CheckpointError

    if target.exists() and read_backbone_header(target) is None:
        raise CheckpointError(f"{target} exists and is no backbone of ours: choose another name or remove it")
    weights = map_imagenet(tensors, source=source.name, author=author, network=network)
    header = weights.header
    write_backbone(target, weights.tensors, header)
    what = header.network or f"ResNet with stride in the {'1x1' if header.stride_in_1x1 else '3x3'}"
    used = len(tensors) - len(weights.reported)
    return {
        "source": str(source),
        "target": str(target),
        "architecture": "backbone",
        "network": header.network,
        "depths": header.depths if header.network is None else None,
        "stride_in_1x1": header.stride_in_1x1,
        "pixels": {"order": header.order, "mean": header.mean, "std": header.std},
        "tensors": {"used": used, "reported": weights.reported},
        "summary": f"backbone: {what}, {header.order.upper()} pixels, mean {header.mean}, std {header.std}: "
        f"{used} tensors used",
    }


def _mavl(tensors: Mapping[str, Tensor], source: Path, target: Path) -> dict[str, Any]:
    from ovbridge.errors import CheckpointError
    from ovbridge.teachers.mavl.weights import convert_official_mavl, our_name

    if target.exists():
        raise CheckpointError(f"{target} exists already: choose another name or remove it")
    why = "copy of a shared head, or never run"
    reported = {name: why for name in tensors if our_name(name) is None}
    used = convert_official_mavl(tensors, target, source=str(source))
    return {
        "source": str(source),
        "target": str(target),
        "architecture": "mavl",
        "tensors": {"used": len(used), "reported": reported},
        "summary": f"MDef-DETR (MAVL): {len(used)} tensors used",
    }
