"""From the names that a user gives teachers to a labeller: the one place that knows every kind of teacher.

Proposers: builtin, builtin-full, FILE (MAVL weights), hf:NAME_OR_FOLDER, rpn:CHECKPOINT, boxes:FILE.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from ovbridge.device import Precision, labelling_precision
from ovbridge.errors import ConfigError, TeacherError
from ovbridge.labeling.labellers import CAPTION_THRESHOLD, JointLabeller, Labeller, RegionLabeller, TagLabeller
from ovbridge.labeling.pseudo_boxes import SelectionConfig
from ovbridge.labeling.region_embeddings import CropRule
from ovbridge.teachers.protocol import AnyProposer


@dataclass(frozen=True, kw_only=True)
class TeacherChoice:
    """Which teachers, by the names that a user gives them; picklable, so that every machine can load its own."""

    proposer: str = "builtin"
    """See the module."""
    clip: str = "builtin"
    """See `load_clip`."""
    trained_on: str | None = None
    """What the proposer has seen, where the user knows better than its file."""
    device: str = "auto"
    """auto, cpu, cuda, cuda:1, ..."""
    precision: Precision = "fp32"
    """fp32, bf16, fp16, or auto: bf16 where the hardware computes it. Of the proposer and of CLIP's image tower."""


@dataclass(frozen=True, kw_only=True)
class LabellingPlan:
    """All that decides what the labels will be; `build` makes the labeller, on whatever machine."""

    teachers: TeacherChoice
    regions: bool = False
    """Make RKD regions."""
    names_of: Mapping[str, Sequence[str]] | None = None
    """Make PIS boxes of these names, by image key."""
    selection: SelectionConfig = field(default_factory=SelectionConfig)
    crop_rule: CropRule = "tight"
    threshold: float = CAPTION_THRESHOLD
    """Score from which a PIS box counts."""
    size_weight: float = 0.0
    """How much a larger PIS box is preferred."""

    def build(self) -> Labeller:
        """Load the teachers; raises what they raise."""
        device = device_named(self.teachers.device)
        precision = labelling_precision(device, self.teachers.precision)
        proposer = load_proposer(self.teachers, device, for_names=self.names_of is not None)
        tags = None
        if self.names_of is not None:
            tags = TagLabeller(
                proposer=proposer,
                names_of=self.names_of,
                threshold=self.threshold,
                size_weight=self.size_weight,
                paper_exact=self.selection.paper_exact,
                precision=precision,
            )
        if not self.regions:
            if tags is None:
                raise ConfigError("a labelling plan needs regions or names")
            return tags
        from ovbridge.teachers.clip import load_clip

        regions = RegionLabeller(
            proposer=proposer,
            encoder=load_clip(self.teachers.clip, device, precision=precision),
            selection=self.selection,
            crop_rule=self.crop_rule,
            precision=precision,
        )
        return regions if tags is None else JointLabeller(regions=regions, tags=tags)

    def check_knows(self, labeller: Labeller, image_keys: Sequence[str], max_failed: float) -> None:
        """Raise DataError if the proposer's boxes come from a file that lacks more than a share of the images."""
        from ovbridge.teachers.stored_boxes import StoredBoxes

        part = labeller.regions if isinstance(labeller, JointLabeller) else labeller
        proposer = getattr(part, "proposer", None)
        if isinstance(proposer, StoredBoxes):
            proposer.check_knows([key for key in image_keys if labeller.tables_of(key)], max_failed)


def device_named(name: str) -> torch.device:
    """The device that `--device` names; raises ConfigError if it is none."""
    from ovbridge.device import default_device

    try:
        device = default_device() if name == "auto" else torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError):
        raise ConfigError(f"--device {name} is no device of this machine: use auto, cpu or cuda") from None
    return device


def load_proposer(choice: TeacherChoice, device: torch.device, *, for_names: bool) -> AnyProposer:
    """The proposer that a user names.

    Args:
        choice: its name and what it was trained on.
        device: where to compute.
        for_names: whether it must find things by name.

    Raises:
        TeacherError: it cannot be loaded, or knows no names and must.
    """
    kind, colon, rest = choice.proposer.partition(":")
    if colon and kind == "hf":
        from ovbridge.teachers.hf_proposer import load_hf_proposer

        return load_hf_proposer(
            rest, device, trained_on=choice.trained_on, precision=labelling_precision(device, choice.precision)
        )
    if colon and kind == "rpn":
        if for_names:
            raise TeacherError(f"{choice.proposer} finds objects, not names: use it for 'label regions'")
        return _rpn(Path(rest), device, choice.trained_on)
    if colon and kind == "boxes":
        from ovbridge.teachers.stored_boxes import load_stored_boxes

        stored = load_stored_boxes(rest, trained_on=choice.trained_on)
        if for_names and not stored.knows_names:
            raise TeacherError(
                f"{choice.proposer} does not say what its boxes show: add the annotation file that names the "
                f"categories (boxes:{rest},instances.json), or use it for 'label regions'"
            )
        return stored
    from ovbridge.teachers.mavl.proposer import load_mavl

    mavl = load_mavl(choice.proposer, device, precision=choice.precision)
    if choice.trained_on:
        mavl.trained_on = choice.trained_on
    return mavl


def _rpn(path: Path, device: torch.device, trained_on: str | None) -> AnyProposer:
    from ovbridge.detector import load_detector
    from ovbridge.inference import Detector
    from ovbridge.teachers.digest import state_digest
    from ovbridge.teachers.rpn import RpnProposer

    model, metadata = load_detector(path)
    base = sum(record.get("role") == "base" for record in metadata.vocabulary)
    seen = f"the boxes of its {base} base classes" if base else "unknown boxes"
    return RpnProposer(
        Detector(model, metadata, device=device).propose,
        name=f"rpn:{path}",
        trained_on=trained_on or f"{seen}, stage {metadata.stage}, recipe {metadata.recipe or 'unknown'}",
        digest=state_digest(model),
    )
