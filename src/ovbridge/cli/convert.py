"""`ovbridge convert`: an official checkpoint becomes one of ours."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import tyro

from ovbridge.cli.arguments import call

EXAMPLES = """\
ovbridge convert coco_ovd_rkd_pis_weighttransfer.pth coco.safetensors
ovbridge convert lvis_ovd_base.pth lvis.safetensors --json"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(convert, argv, verb="convert", examples=EXAMPLES)


def convert(
    source: Annotated[Path, tyro.conf.Positional],
    target: Annotated[Path, tyro.conf.Positional],
    *,
    names: Path | None = None,
    json: bool = False,
) -> None:
    """Turn an official checkpoint (.pth of Detectron2) into a detector.safetensors, without executing anything in it.

    Recognises the released COCO and LVIS detectors, with linear and with transferred projection; every tensor is
    used or reported.

    Args:
        source: The .pth file.
        target: The file to write.
        names: Class names of another vocabulary: a JSON list of records with id and name, or one name a line.
        json: Print the result as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.detector.checkpoint_file import DetectorMetadata, refuse_foreign_target, save_detector
    from ovbridge.detector.checkpoint_map import map_official, read_official
    from ovbridge.vocabulary.released import released_vocabulary, with_training_boxes
    from ovbridge.vocabulary.text_bank import PAPER_TEMPLATE, TextBank

    refuse_foreign_target(target)
    mapped = map_official(read_official(source))
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
        bank_digest=bank.digest(),
        recipe=f"converted from {source.name}",
    )
    save_detector(target, model, metadata)
    result = {
        "source": str(source),
        "target": str(target),
        "architecture": model.config.name,
        "projection": "weight transfer" if model.config.projection.transfer else "linear",
        "stage": mapped.stage,
        "classes": {role: len(vocabulary.columns(role)) for role in ("base", "novel", "unused")},
        "tensors": {"used": len(mapped.used), "reported": mapped.reported},
        "text_encoder": bank.encoder,
    }
    if json:
        print(json_format.dumps(result))
        return
    stdout.print(
        f"{model.config.name}, {result['projection']} projection, {len(vocabulary)} classes: "
        f"{len(mapped.used)} tensors used",
        soft_wrap=True,
    )
    for name, reason in mapped.reported.items():
        stdout.print(f"  {name}: {reason}", soft_wrap=True)
    stdout.print(f"written to {target}", soft_wrap=True)
