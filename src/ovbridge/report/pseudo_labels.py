"""How often the box of "every <name>" is right, and how many are left, by the score from which it is trusted.

Legend: N named boxes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ovbridge.report.figure import BASE, INK, MUTED, NOVEL, chart, to_svg

Array = np.ndarray[Any, Any]

PAPER_THRESHOLD = 0.95
"""Score from which the paper trusts the box of a caption's tag."""
FEWEST_BOXES = 10
"""A share of fewer boxes is not drawn."""


@dataclass(frozen=True, kw_only=True)
class NamedBoxQuality:
    """Best boxes of names that are in their image."""

    scores_N: Array  # noqa: N815 - dense-maths suffix
    """[N] the proposer's scores, in [0, 1]."""
    right_N: Array  # noqa: N815 - dense-maths suffix
    """[N] bool, whether the box has IoU 0.5 with an object of that name."""


def precision_by_threshold(quality: NamedBoxQuality, thresholds: Array) -> tuple[Array, Array]:
    """(share of right boxes among those above each threshold, NaN without any; share of all boxes that are above)."""
    above = quality.scores_N[None] > thresholds[:, None]
    kept = above.sum(axis=1)
    right = (above & quality.right_N[None]).sum(axis=1)
    with np.errstate(invalid="ignore", divide="ignore"):
        precision = np.where(kept > 0, right / np.maximum(kept, 1), np.nan)
    return precision, kept / max(len(quality.scores_N), 1)


def threshold_chart(by_role: Mapping[str, NamedBoxQuality]) -> str:
    """Precision left, share kept right; one line for base and one for novel names."""
    thresholds = np.linspace(0, 1, 101)
    colours = {"base": BASE, "novel": NOVEL}
    with chart(1, 2, height=3.0) as (figure, axes):
        for role, quality in by_role.items():
            precision, kept = precision_by_threshold(quality, thresholds)
            precision = np.where(np.rint(kept * len(quality.scores_N)) >= FEWEST_BOXES, precision, np.nan)
            label = f"{role} ({len(quality.scores_N)} boxes)"
            axes[0, 0].plot(thresholds, precision, color=colours[role], label=label)
            axes[0, 1].plot(thresholds, kept, color=colours[role])
        for axis, title in zip(axes.flat, ("right boxes", "boxes kept"), strict=True):
            axis.axvline(PAPER_THRESHOLD, color=MUTED, linewidth=0.8, linestyle=":")
            axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="score threshold", ylabel="share")
            axis.set_title(title)
        axes[0, 0].legend(labelcolor=INK, fontsize=8)
        return to_svg(figure, label="Precision of pseudo boxes by score threshold")
