"""MAVL weights: our files (safetensors with everything in the header) and the names of the official ones."""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

from ovbridge.errors import CheckpointError, TeacherError
from ovbridge.teachers.mavl.config import MavlConfig, mavl_full
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.text import hub_tokenizer

FORMAT = "ovbridge-mavl-1"
"""The metadata key of our files."""

OFFICIAL_PREFIXES = (
    ("backbone.0.body.", "backbone."),
    ("input_proj.", "input_proj."),
    ("query_embed.", "query_embed."),
    ("transformer.level_embed", "level_embed"),
    ("transformer.encoder.", "encoder."),
    ("transformer.decoder.", "decoder."),
    ("transformer.reference_points.", "reference_points."),
    ("transformer.img_text_attn.", "fusion."),
    ("transformer.text_encoder.", "text.encoder."),
    ("transformer.resizer.fc.", "text.resizer."),
    ("transformer.resizer.layer_norm.", "text.resizer_norm."),
    ("class_embed.0.", "class_head."),
    ("bbox_embed.0.", "box_head."),
)
"""Official tensor names and ours; inside the modules the names are the same."""

_UNUSED_OFFICIAL = re.compile(
    # Copies of the shared heads, and parts that the released inference never runs.
    r"^(class_embed|bbox_embed)\.[1-9]\d*\.|^transformer\.text_encoder\.pooler\.|\.position_ids$|\.num_batches_tracked$"
)


def our_name(official: str) -> str | None:
    """Our name of an official tensor; None for one that is a copy or not used; CheckpointError for a foreign one."""
    if _UNUSED_OFFICIAL.search(official):
        return None
    for theirs, ours in OFFICIAL_PREFIXES:
        if official.startswith(theirs):
            return ours + official[len(theirs) :]
    raise CheckpointError(f"tensor {official!r} is not part of MDef-DETR: is this an MDef_DETR_r101 checkpoint?")


def official_names(state: dict[str, Tensor]) -> dict[str, str]:
    """The official name of each of our tensors."""
    names = {}
    for ours in state:
        theirs = next(t + ours[len(o) :] for t, o in OFFICIAL_PREFIXES if ours.startswith(o))
        names[ours] = theirs
    return names


def convert_official_mavl(
    tensors: Mapping[str, Tensor], target: Path, *, source: str, tokenizer: str = "roberta-base"
) -> dict[str, Tensor]:
    """Write the tensors of a released `MDef_DETR_r101_*.pth` as our safetensors file and return them by our names.

    The tokenizer is named, not stored. Raises CheckpointError where `source` is another model's or cut off, or the
    target cannot be written.
    """
    with torch.device("meta"):
        model = Mavl(mavl_full())
    state = {ours: tensor for name, tensor in tensors.items() if (ours := our_name(name)) is not None}
    _check_names(state, model.state_dict(), source)
    save_mavl(
        target,
        config=mavl_full(),
        state=state,
        tokenizer=tokenizer,
        trained_on="LMDet: Flickr30k, MS-COCO/GQA, Visual Genome phrases (novel names included), arXiv 2111.11430",
        half=False,
    )
    return state


@dataclass(frozen=True, kw_only=True)
class MavlFile:
    """A MAVL weights file, read."""

    config: MavlConfig
    """Architecture."""
    state: dict[str, Tensor]
    """fp32 tensors under our names."""
    tokenizer: Tokenizer
    """Turns a text into token ids."""
    trained_on: str
    """What its training saw."""
    digest: str
    """First 16 hex digits of the file's SHA-256."""


def save_mavl(
    path: Path, *, config: MavlConfig, state: dict[str, Tensor], tokenizer: Tokenizer | str, trained_on: str, half: bool
) -> None:
    """Write atomically. `half` stores floats as fp16 (half the size, 3 digits); a tokenizer given as text is a name.

    Raises CheckpointError where `path` cannot be written.
    """
    tensors = {
        name: (t.half() if half and t.is_floating_point() else t).detach().cpu().contiguous().clone()
        for name, t in state.items()
    }
    words = {"tokenizer_name": tokenizer} if isinstance(tokenizer, str) else {"tokenizer": tokenizer.to_str()}
    record = {"config": config.to_json(), "trained_on": trained_on, **words}
    partial = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # One key: safetensors writes several in random order, and equal runs must give equal files.
        save_file(tensors, partial, metadata={FORMAT: json.dumps(record, sort_keys=True)})
        partial.replace(path)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise CheckpointError(f"{path} cannot be written ({reason}): choose another place") from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink()


def read_mavl(path: Path, *, tokenizer: str | None = None) -> MavlFile:
    """Read a file of `save_mavl`. `tokenizer` overrides the tokenizer by a folder or hub name.

    Raises CheckpointError where the file is missing, damaged or not MAVL's, TeacherError where a named tokenizer
    cannot be found.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise CheckpointError(f"{path} is no MAVL weights file: it does not exist or is a folder") from error
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path} is not a readable safetensors file ({error}): fetch or make it again") from error
    if FORMAT not in metadata:
        raise CheckpointError(f"{path} does not hold MAVL weights: official .pth files go through 'ovbridge convert'")
    record: dict[str, str] = json.loads(metadata[FORMAT])
    name = tokenizer or record.get("tokenizer_name")
    if name:
        words = hub_tokenizer(name)
    elif "tokenizer" in record:
        words = Tokenizer.from_str(record["tokenizer"])
    else:
        raise TeacherError(f"{path} names no tokenizer: pass tokenizer=FOLDER")
    return MavlFile(
        config=MavlConfig.from_json(record["config"]),
        state={k: t.float() if t.is_floating_point() else t for k, t in state.items()},
        tokenizer=words,
        trained_on=record["trained_on"],
        digest=file_digest(path),
    )


def build_mavl(file: MavlFile, path: Path) -> Mavl:
    """The model with the file's weights, in evaluation mode."""
    return mavl_from_state(file.config, file.state, source=str(path))


def mavl_from_state(config: MavlConfig, state: dict[str, Tensor], *, source: str) -> Mavl:
    """The model that holds these very tensors, in evaluation mode; `source` names them in errors."""
    # On the meta device: a random start of 150 million parameters would take longer than reading them.
    with torch.device("meta"):
        model = Mavl(config)
    _check_names(state, model.state_dict(), source)
    model.load_state_dict(state, assign=True)
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            if buffer.is_meta:  # RoBERTa's id buffers, which TextEncoder does not read
                setattr(module, name, torch.zeros(buffer.shape, dtype=buffer.dtype))
    return model.eval().requires_grad_(False)


def file_digest(path: Path) -> str:
    """First 16 hex digits of a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:16]


def _check_names(state: dict[str, Tensor], expected: dict[str, Tensor], source: str) -> None:
    missing, foreign = sorted(set(expected) - set(state)), sorted(set(state) - set(expected))
    if missing or foreign:
        raise CheckpointError(
            f"{source} does not fit its architecture: {len(missing)} tensors missing {json.dumps(missing[:3])}, "
            f"{len(foreign)} unknown {json.dumps(foreign[:3])}"
        )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise CheckpointError(
                f"{source}: {name} has shape {tuple(tensor.shape)}, the architecture {tuple(expected[name].shape)}"
            )
