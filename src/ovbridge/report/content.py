"""What a report shows, as plain arrays and names. What is absent is left out of the page.

Legend: N regions, D embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ovbridge.structures import Detections

Array = np.ndarray[Any, Any]


@dataclass(frozen=True, kw_only=True)
class LossCurve:
    """One loss of one training run."""

    steps: Sequence[int]
    """Steps done, ascending."""
    values: Sequence[float]
    """Weighted loss, mean since the point before."""


@dataclass(frozen=True, kw_only=True)
class StageReport:
    """One trained stage and what it reached on the validation images."""

    name: str
    """As in results.json: "base", "rkd", "pis", "rkd_pis" or "rkd_pis_wt"."""
    ap50: Mapping[str, float]
    """"base", "novel", "all" → AP at IoU 0.5, percent."""
    ap: Mapping[str, float]
    """The same keys → AP averaged over IoU 0.5 to 0.95, percent."""
    class_ap50: Mapping[str, float] = field(default_factory=dict)
    """Class name → AP50, percent."""
    losses: Mapping[str, LossCurve] = field(default_factory=dict)
    """Loss name → curve."""
    precision: Mapping[str, Array] = field(default_factory=dict)
    """"base" or "novel" → [101] precision at recall 0, 0.01, ..., 1 and IoU 0.5, mean over classes, in [0, 1]."""
    hit_scores: Mapping[str, Array] = field(default_factory=dict)
    """"base" or "novel" → scores of the detections that are right (class, and IoU at least 0.5)."""


@dataclass(frozen=True, kw_only=True)
class ExamplePicture:
    """One validation image and what each stage finds in it."""

    pixels: Array
    """[H, W, 3] uint8 RGB."""
    found: Mapping[str, Detections]
    """Stage name → detections, already cut at the score to be shown."""


@dataclass(frozen=True, kw_only=True)
class ProposalPicture:
    """One image and the best class-agnostic boxes of each proposer."""

    pixels: Array
    """[H, W, 3] uint8 RGB."""
    boxes_xyxy: Mapping[str, Array]
    """Proposer → [K, 4] boxes in pixels, best first."""
    truth_xyxy: Array
    """[N, 4] boxes of the objects that are there."""
    truth_roles: Sequence[str]
    """[N] "base", "novel" or "unused" of each object."""


@dataclass(frozen=True, kw_only=True)
class EmbeddingPanel:
    """Embeddings of the same regions by one model."""

    title: str
    """E.g. "CLIP (teacher)"."""
    embeddings: Array
    """[N, D] float; rows are compared by cosine."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything that one report shows."""

    title: str
    """Heading of the page."""
    lead: str
    """One or two sentences below it: what was run, on what."""
    stages: Sequence[StageReport]
    """In the order of training; the last is the one that the page headlines."""
    roles: Mapping[str, str]
    """Class name → "base", "novel" or "unused"."""
    examples: Sequence[ExamplePicture] = ()
    proposals: Sequence[ProposalPicture] = ()
    proposal_recall: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Proposer → column title (e.g. "novel, recall@5") → percent."""
    panels: Sequence[EmbeddingPanel] = ()
    panel_labels: Sequence[str] = ()
    """[N] class name of each region of the panels."""
    seconds: Mapping[str, float] = field(default_factory=dict)
    """Step of the run → wall-clock seconds, in order."""
    differs: Sequence[str] = ()
    """What differs from the paper's setting, a sentence each."""
    methods: Mapping[str, str] = field(default_factory=dict)
    """Number or figure → how it was measured."""
    facts: Mapping[str, str] = field(default_factory=dict)
    """Seed, versions, machine, commands: a line each."""
