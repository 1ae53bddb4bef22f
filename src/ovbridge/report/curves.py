"""Charts of training and of accuracy: losses, precision and recall, classes, scores, time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ovbridge.report.content import StageReport
from ovbridge.report.figure import BASE, GRID, INK, MUTED, NOVEL, SERIES, chart, to_svg
from ovbridge.report.paper import stage_title


def loss_curves(stages: Sequence[StageReport], *, columns: int = 3) -> str:
    """One small panel a loss, one line a stage; the raw means faint, an exponential average on top."""
    names = list(dict.fromkeys(name for stage in stages for name in stage.losses))
    rows = math.ceil(len(names) / columns)
    with chart(rows, columns, height=2.0 * rows + 0.3) as (figure, axes):
        for axis, name in zip(axes.flat, names, strict=False):
            for stage, colour in zip(stages, SERIES, strict=False):
                if name in stage.losses:
                    curve = stage.losses[name]
                    axis.plot(curve.steps, curve.values, color=colour, alpha=0.25, linewidth=1)
                    axis.plot(curve.steps, smooth(curve.values), color=colour)
            axis.set_title(name.replace("_", " "))
            axis.set_ylim(bottom=0)
        for axis in list(axes.flat)[len(names) :]:
            axis.set_axis_off()
        for axis in axes[-1]:
            axis.set_xlabel("step")
        _stage_legend(figure, [stage for stage in stages if stage.losses], stages)
        return to_svg(figure, label="Training losses by step")


def smooth(values: Sequence[float], weight: float = 0.5) -> list[float]:
    """Exponential moving average without the pull towards zero at the start."""
    average, mass, smoothed = 0.0, 0.0, []
    for value in values:
        average = weight * average + (1 - weight) * value
        mass = weight * mass + (1 - weight)
        smoothed.append(average / mass)
    return smoothed


def precision_recall_curves(stages: Sequence[StageReport]) -> str:
    """Base classes left, novel classes right, one line a stage."""
    recall = np.linspace(0, 1, 101)
    roles = [role for role in ("base", "novel") if any(role in stage.precision for stage in stages)]
    with chart(1, max(len(roles), 1), height=3.3) as (figure, axes):
        for axis, role in zip(axes.flat, roles, strict=False):
            for stage, colour in zip(stages, SERIES, strict=False):
                if role in stage.precision:
                    axis.plot(recall, stage.precision[role], color=colour)
            axis.set(xlim=(0, 1), ylim=(0, 1.02), xlabel="recall", ylabel="precision")
            axis.set_title(f"{role} classes, IoU 0.5")
        _stage_legend(figure, [stage for stage in stages if stage.precision], stages)
        return to_svg(figure, label="Precision against recall for base and novel classes")


def class_bars(stages: Sequence[StageReport], names: Sequence[str], title: str) -> str:
    """AP50 of each named class, one dot a stage; the number is the last stage's, best class on top."""
    ordered = sorted(names, key=lambda name: stages[-1].class_ap50.get(name, 0.0))
    with chart(height=0.27 * len(ordered) + 1.0) as (figure, axes):
        axis = axes[0, 0]
        rows = np.arange(len(ordered))
        values = np.array([[stage.class_ap50.get(name, 0.0) for name in ordered] for stage in stages])
        axis.hlines(rows, values.min(axis=0), values.max(axis=0), color=GRID, linewidth=5, capstyle="round")
        for row_values, colour in zip(values, SERIES, strict=False):
            axis.scatter(row_values, rows, s=44, color=colour, zorder=3, linewidth=0)
        # Beyond the rightmost dot, which need not be the last stage's: on the dots it could not be read.
        for row, value, right in zip(rows, values[-1], values.max(axis=0), strict=True):
            axis.annotate(
                f"{value:.0f}", (right, row), xytext=(8, 0), textcoords="offset points", va="center", color=MUTED
            )
        axis.set_yticks(rows, ordered, color=INK)
        axis.set(xlim=(-1, 106), ylim=(-0.7, len(ordered) - 0.3), xlabel="AP50")
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        axis.set_title(title)
        _stage_legend(figure, stages, stages)
        return to_svg(figure, label=title)


def score_histograms(stages: Sequence[StageReport]) -> str:
    """Scores of right detections, base against novel classes, one panel a stage."""
    shown = [stage for stage in stages if stage.hit_scores]
    edges = np.linspace(0, 1, 26)
    with chart(1, max(len(shown), 1), height=2.5) as (figure, axes):
        for axis, stage in zip(axes.flat, shown, strict=False):
            for role, colour in (("base", BASE), ("novel", NOVEL)):
                scores = stage.hit_scores.get(role)
                if scores is not None and len(scores):
                    share = np.histogram(scores, edges)[0] / len(scores) * 100
                    axis.stairs(share, edges, fill=True, color=colour, alpha=0.3)
                    axis.stairs(share, edges, color=colour, linewidth=1.4)
            counts = ", ".join(f"{len(scores)} {role}" for role, scores in stage.hit_scores.items())
            axis.set(xlim=(0, 1), xlabel=f"score ({counts})")
            axis.set_title(stage_title(stage.name))
        axes[0, 0].set_ylabel("% of right detections")
        _legend(figure, {"base classes": BASE, "novel classes": NOVEL})
        return to_svg(figure, label="Scores of right detections for base and novel classes")


def time_bars(seconds: Mapping[str, float]) -> str:
    """Wall-clock time of each step of the run, in order."""
    steps, values = list(seconds), list(seconds.values())
    with chart(height=0.3 * len(steps) + 0.7) as (figure, axes):
        axis = axes[0, 0]
        rows = np.arange(len(steps))[::-1]
        axis.barh(rows, values, height=0.62, color=SERIES[2])
        for row, value in zip(rows, values, strict=True):
            axis.annotate(
                minutes(value), (value, row), xytext=(6, 0), textcoords="offset points", va="center", color=MUTED
            )
        axis.set_yticks(rows, steps, color=INK)
        axis.set(xlim=(0, max([*values, 1.0]) * 1.12), xlabel="seconds")
        axis.grid(axis="y", visible=False)
        axis.spines["left"].set_visible(False)
        return to_svg(figure, label="Wall-clock time of each step")


def minutes(seconds: float) -> str:
    """72.4 → "1 min 12 s"."""
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole >= 60 else f"{seconds:.1f} s"


def _stage_legend(figure: Any, present: Sequence[StageReport], stages: Sequence[StageReport]) -> None:
    colours = {stage.name: colour for stage, colour in zip(stages, SERIES, strict=False)}
    _legend(figure, {stage_title(stage.name): colours[stage.name] for stage in present})


def _legend(figure: Any, colours: Mapping[str, str]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, marker="o", linestyle="-", label=label) for label, colour in colours.items()
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=max(len(handles), 1), labelcolor=INK)
