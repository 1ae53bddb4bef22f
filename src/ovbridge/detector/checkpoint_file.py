"""One detector in one file: safetensors with the architecture and the vocabulary in its metadata.

Nothing in such a file is executed on loading.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open

from ovbridge.detector.atomic_file import write_safetensors
from ovbridge.detector.build import empty_detector, load_values
from ovbridge.detector.config import DetectorConfig
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.errors import CheckpointError

FORMAT = "ovbridge-detector-1"
"""The key of the metadata."""

_TEXT_BANK = "roi_head.classifier.text_KD"


@dataclass(frozen=True, kw_only=True)
class DetectorMetadata:
    """What a checkpoint says of itself, beside the architecture."""

    stage: str
    """The stage of training that made it: base, rkd, pis, rkd_pis, rkd_pis_wt, or what a converted file was."""
    vocabulary: tuple[dict[str, Any], ...]
    """One record a class, in column order: name, role, category_id."""
    text_encoder: str
    """Which text encoder made the text bank, so that other names can be embedded alike."""
    templates: tuple[str, ...] = ("a photo of a {}",)
    """Its prompt templates."""
    bank_digest: str = ""
    """Digest of the text bank."""
    recipe: str = ""
    """The recipe, or the file that was converted."""
    versions: dict[str, str] = field(default_factory=dict)
    """Versions of what wrote the file."""
    extra: dict[str, Any] = field(default_factory=dict)
    """Anything else, such as seed and steps."""

    @property
    def names(self) -> tuple[str, ...]:
        """Class names in column order."""
        return tuple(str(record["name"]) for record in self.vocabulary)


def _versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "safetensors": safetensors.__version__}


def save_detector(path: Path, model: TwoStageDetector, metadata: DetectorMetadata) -> None:
    """Write `model` and `metadata` to `path` atomically: aside first, then renamed.

    Raises CheckpointError where the vocabulary does not fit the text bank or the file cannot be written.
    """
    if len(metadata.vocabulary) != model.num_classes:
        raise CheckpointError(
            f"{path}: {len(metadata.vocabulary)} class names for a text bank of {model.num_classes}: "
            "give the vocabulary that the bank was made from"
        )
    record = asdict(metadata)
    record["versions"] = _versions() | metadata.versions
    # One key, sorted within: safetensors writes several in random order, and equal runs must give equal files.
    text = json.dumps({"config": model.config.to_json(), "metadata": record}, sort_keys=True)
    write_safetensors(path, model.state_dict(), {FORMAT: text})


def read_metadata(path: Path) -> tuple[DetectorConfig, DetectorMetadata]:
    """Architecture and metadata of a checkpoint without its weights; raises CheckpointError as `load_detector`."""
    with _open(path) as file:
        texts = file.metadata() or {}
    try:
        if FORMAT in texts:
            parts = json.loads(texts[FORMAT])
        elif texts.get("format") == FORMAT:
            # Files of before held three keys.
            parts = {"config": json.loads(texts["config"]), "metadata": json.loads(texts["metadata"])}
        else:
            what = f"format {texts['format']!r}" if "format" in texts else "no detector of ours"
            raise CheckpointError(
                f"{path} holds {what}: give a detector.safetensors written by 'ovbridge train' or 'ovbridge convert'"
            )
        config = DetectorConfig.from_json(parts["config"])
        metadata = TypeAdapter(DetectorMetadata).validate_python(parts["metadata"])
    except (KeyError, TypeError, ValueError, ValidationError) as error:
        line = str(error).splitlines()[0]
        raise CheckpointError(f"{path}: its metadata cannot be read ({line}): write the checkpoint again") from None
    return config, metadata


def backbone_trained_on(path: Path) -> str:
    """What the backbone in a file learnt before any box, as the file declares; "" where it does not say.

    Reads files of `ovbridge train backbone` and detectors that started from them.
    """
    try:
        with _open(path) as file:
            texts = file.metadata() or {}
        if FORMAT not in texts:
            return str(texts.get("trained_on", ""))
        return str(read_metadata(path)[1].extra.get("backbone_trained_on", ""))
    except CheckpointError:
        return ""


def load_detector(path: Path) -> tuple[TwoStageDetector, DetectorMetadata]:
    """The detector in `path`, on the CPU in evaluation mode, with what the file says of itself.

    Raises CheckpointError in one line for a missing, truncated or foreign file and for weights that do not fit
    the architecture named in it.
    """
    config, metadata = read_metadata(path)
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    bank = tensors.get(_TEXT_BANK)
    if bank is None or len(bank) != len(metadata.vocabulary):
        raise CheckpointError(f"{path}: text bank and class names do not fit: write the checkpoint again")
    model = empty_detector(config, len(bank))
    expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
    for name, shape in expected.items():
        if name not in tensors or tuple(tensors[name].shape) != shape:
            got = tuple(tensors[name].shape) if name in tensors else "nothing"
            raise CheckpointError(f"{path}: {name} should be {shape}, the file has {got}: write the checkpoint again")
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise CheckpointError(f"{path}: unknown tensor {unknown[0]!r}: the file was written by another version")
    load_values(model, tensors)
    return model.eval(), metadata


def refuse_foreign_target(path: Path) -> None:
    """Raise CheckpointError if writing `path` would replace anything but a detector of ours."""
    if not path.exists():
        return
    try:
        read_metadata(path)
    except CheckpointError:
        raise CheckpointError(f"{path} exists and is no detector of ours: choose another name or remove it") from None


def _open(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist: give a detector.safetensors")
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(
            f"{path} is no complete safetensors file ({error}): copy it again, or use 'ovbridge convert' on a .pth"
        ) from None
