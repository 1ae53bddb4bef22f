"""The report: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ovbridge.report import curves, embeddings, paper
from ovbridge.report.content import Array, ProposalPicture, ReportData, StageReport
from ovbridge.report.drawing import ROLE_COLOURS, data_uri, draw_boxes, draw_detections

_PICTURE_WIDTH = 640
"""Small pictures are enlarged to about this many pixels before lettering."""


def render_report(data: ReportData, *, paper_numbers: Mapping[str, Mapping[str, float]] = paper.FINAL) -> str:
    """The whole page as HTML. `paper_numbers`: the paper's table that fits the proposer (see `paper`)."""
    from jinja2 import Environment, FileSystemLoader

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    page = environment.get_template("page.html.j2").render(
        data=data,
        headline=data.stages[-1],
        rows=[_table_row(stage, paper_numbers) for stage in data.stages],
        charts=_charts(data),
        examples=_examples(data),
        proposals=[_proposal_pictures(picture) for picture in data.proposals],
        recall_columns=list(next(iter(data.proposal_recall.values()), {})),
        purities=_purities(data),
        minutes=curves.minutes,
        total_seconds=sum(data.seconds.values()),
    )
    return page + "\n"


def _table_row(stage: StageReport, paper_numbers: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    return {
        "title": paper.stage_title(stage.name),
        "meaning": paper.STAGE_MEANINGS.get(stage.name, ""),
        "ap50": stage.ap50,
        "ap": stage.ap,
        "ratio": stage.ap50["novel"] / stage.ap50["base"] if stage.ap50.get("base") else None,
        "paper": paper_numbers.get(stage.name),
    }


def _charts(data: ReportData) -> dict[str, str]:
    stages = data.stages
    charts = {}
    if any(stage.precision for stage in stages):
        charts["precision"] = curves.precision_recall_curves(stages)
    for role in ("novel", "base"):
        names = [name for name, r in data.roles.items() if r == role and name in stages[-1].class_ap50]
        if names:
            charts[f"{role}_classes"] = curves.class_bars(stages, names, f"{role} classes, AP50")
    if any(stage.losses for stage in stages):
        charts["losses"] = curves.loss_curves(stages)
    if any(stage.hit_scores for stage in stages):
        charts["scores"] = curves.score_histograms(stages)
    if data.panels:
        charts["similarity"] = embeddings.similarity_panels(data.panels, data.panel_labels)
        charts["tsne"] = embeddings.tsne_panels(data.panels, data.panel_labels)
    if data.seconds:
        charts["time"] = curves.time_bars(data.seconds)
    return charts


def _examples(data: ReportData) -> list[list[dict[str, str]]]:
    return [
        [
            {
                "title": paper.stage_title(name),
                "uri": data_uri(
                    draw_detections(picture.pixels, found, roles=data.roles, magnify=_magnify(picture.pixels))
                ),
            }
            for name, found in picture.found.items()
        ]
        for picture in data.examples
    ]


def _proposal_pictures(picture: ProposalPicture) -> list[dict[str, str]]:
    magnify = _magnify(picture.pixels)
    truth = [ROLE_COLOURS[role] for role in picture.truth_roles]
    drawn = [
        (title, draw_boxes(picture.pixels, boxes, [(245, 158, 11)] * len(boxes), _ranks(len(boxes)), magnify=magnify))
        for title, boxes in picture.boxes_xyxy.items()
    ]
    drawn.append(("objects that are there", draw_boxes(picture.pixels, picture.truth_xyxy, truth, magnify=magnify)))
    return [{"title": title, "uri": data_uri(image)} for title, image in drawn]


def _ranks(count: int) -> list[str]:
    return [str(i + 1) for i in range(count)]


def _purities(data: ReportData) -> list[tuple[str, float]]:
    return [(panel.title, embeddings.knn_purity(panel.embeddings, data.panel_labels)) for panel in data.panels]


def _magnify(pixels: Array) -> float:
    longer = int(max(pixels.shape[0], pixels.shape[1]))
    return max(1.0, _PICTURE_WIDTH / longer)
