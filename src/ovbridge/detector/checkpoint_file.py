"""One detector in one file: safetensors with the architecture and the vocabulary in its metadata.

Nothing in such a file is executed on loading.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import safetensors
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError, safe_open
from torch import Tensor

from ovbridge.detector.atomic_file import write_safetensors
from ovbridge.detector.build import empty_detector, load_values
from ovbridge.detector.config import DetectorConfig, first_fault
from ovbridge.detector.detector import TwoStageDetector
from ovbridge.errors import CheckpointError

FORMAT = "ovbridge-detector-1"
"""The key of the metadata."""

_TEXT_BANK = "roi_head.classifier.text_KD"
_STORED_ROWS = "stored-rows-sha256:"
"""How the digests begin that are checked; those of older files are of rows before they were normalised."""
_UNIT_TOLERANCE = 1e-3
_OLD_KEYS = ("config", "metadata")


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
    """Digest of names, encoder, templates and stored rows; `save_detector` writes it, whatever is given here."""
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

    @property
    def test_size(self) -> tuple[int, int] | None:
        """Short side and longest side at detection, in pixels; None where `extra` does not say.

        Raises CheckpointError where it says nonsense.
        """
        if "test_size" not in self.extra:
            return None
        size = self.extra["test_size"]
        if not isinstance(size, (list, tuple)) or len(size) != 2 or not all(type(side) is int for side in size):
            raise CheckpointError(f"extra.test_size is {size!r:.60}: it must be two whole numbers of pixels")
        if min(size) < 1:
            raise CheckpointError(f"extra.test_size is {size!r:.60}: both sides must be at least 1 pixel")
        return size[0], size[1]


def _versions() -> dict[str, str]:
    return {"torch": str(torch.__version__), "safetensors": safetensors.__version__}


def save_detector(path: Path, model: TwoStageDetector, metadata: DetectorMetadata) -> None:
    """Write `model` and `metadata` to `path` atomically: aside first, then renamed.

    Raises CheckpointError where the vocabulary does not fit the text bank, a row of it is empty or not finite, or the
    file cannot be written.
    """
    if len(metadata.vocabulary) != model.num_classes:
        raise CheckpointError(
            f"{path}: {len(metadata.vocabulary)} class names for a text bank of {model.num_classes}: "
            "give the vocabulary that the bank was made from"
        )
    _check_rows(path, metadata, model.roi_head.classifier.text_KD)
    record = asdict(metadata)
    record["versions"] = _versions() | metadata.versions
    record["bank_digest"] = _bank_digest(metadata, model.roi_head.classifier.text_KD)
    # One key, sorted within: safetensors writes several in random order, and equal runs must give equal files.
    text = json.dumps({"config": model.config.to_json(), "metadata": record}, sort_keys=True)
    write_safetensors(path, model.state_dict(), {FORMAT: text})


def read_metadata(path: Path) -> tuple[DetectorConfig, DetectorMetadata]:
    """Architecture and metadata of a checkpoint without its weights; raises CheckpointError as `load_detector`."""
    with _open(path) as file:
        texts = file.metadata() or {}
    if FORMAT not in texts and texts.get("format") != FORMAT:
        what = f"format {texts['format']!r}" if "format" in texts else "no detector of ours"
        raise CheckpointError(
            f"{path} holds {what}: give a detector.safetensors written by 'ovbridge train' or 'ovbridge convert'"
        )
    try:
        # Files of before held three keys.
        parts = json.loads(texts[FORMAT]) if FORMAT in texts else {k: json.loads(texts[k]) for k in _OLD_KEYS}
        config = DetectorConfig.from_json(parts["config"])
        metadata = TypeAdapter(DetectorMetadata).validate_python(parts["metadata"])
        _check_names(metadata)
        _ = metadata.test_size
    except (LookupError, TypeError, ValueError, RecursionError, CheckpointError) as error:
        line = first_fault(error) if isinstance(error, ValidationError) else _first_line(error)
        raise CheckpointError(f"{path}: its metadata cannot be read ({line}): write the checkpoint again") from None
    return config, metadata


def _check_names(metadata: DetectorMetadata) -> None:
    seen: set[str] = set()
    for i, record in enumerate(metadata.vocabulary):
        name = record.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"class {i} of its vocabulary has no name")
        if name in seen:
            raise ValueError(f"the class name {name!r:.60} appears twice")
        name.encode()  # A half character, which JSON can hold, is a ValueError here.
        seen.add(name)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]


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

    Raises CheckpointError in one line for a missing, truncated or foreign file, for weights that do not fit
    the architecture named in it, and for a text bank that is not the one of its class names.
    """
    config, metadata = read_metadata(path)
    with _open(path) as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dictionary
    model = _empty_detector(path, config, len(metadata.vocabulary))
    expected = model.state_dict()
    for name, value in expected.items():
        if name not in tensors or _form(tensors[name]) != _form(value):
            got = _form(tensors[name]) if name in tensors else "nothing"
            raise CheckpointError(
                f"{path}: {name} should be {_form(value)}, the file has {got}: write the checkpoint again"
            )
    unknown = sorted(set(tensors) - set(expected))
    if unknown:
        raise CheckpointError(f"{path}: unknown tensor {unknown[0]!r}: the file was written by another version")
    _check_rows(path, metadata, tensors[_TEXT_BANK])
    _check_digest(path, metadata, tensors[_TEXT_BANK])
    load_values(model, tensors)
    return model.eval(), metadata


def _empty_detector(path: Path, config: DetectorConfig, num_classes: int) -> TwoStageDetector:
    if num_classes == 0:
        raise CheckpointError(f"{path}: its vocabulary has no class: write the checkpoint again")
    try:
        return empty_detector(config, num_classes)
    except (ValueError, TypeError, LookupError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: no detector can be built from its configuration ({_first_line(error)}): "
            "write the checkpoint again"
        ) from None


def _form(tensor: Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def _bank_digest(metadata: DetectorMetadata, text_KD: Tensor) -> str:
    digest = hashlib.sha256(json.dumps([metadata.names, metadata.text_encoder, metadata.templates]).encode())
    digest.update(text_KD.detach().float().cpu().contiguous().numpy().tobytes())
    return _STORED_ROWS + digest.hexdigest()


def _check_rows(path: Path, metadata: DetectorMetadata, text_KD: Tensor) -> None:
    # Written so that NaN is refused as well.
    bad = ~((text_KD.norm(dim=1) - 1).abs() < _UNIT_TOLERANCE)
    for i in bad.nonzero().flatten().tolist()[:1]:
        raise CheckpointError(
            f"{path}: the text embedding of {metadata.names[i]!r} is no unit vector: rebuild the text bank"
        )


def _check_digest(path: Path, metadata: DetectorMetadata, text_KD: Tensor) -> None:
    if metadata.bank_digest.startswith(_STORED_ROWS) and metadata.bank_digest != _bank_digest(metadata, text_KD):
        raise CheckpointError(
            f"{path}: text bank and class names are not those that were written together: write the checkpoint again"
        )


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
