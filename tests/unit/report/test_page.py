from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
import torch

from ovbridge.report.content import (
    EmbeddingPanel,
    ExamplePicture,
    LossCurve,
    ProposalPicture,
    ReportData,
    StageReport,
)
from ovbridge.report.curves import loss_curves, minutes, smooth
from ovbridge.report.page import render_report
from ovbridge.structures import Detections

NAMES = ("mug", "kite", "<bell>")
ROLES = {"mug": "base", "kite": "base", "<bell>": "novel"}


def _stage(name: str, base: float, novel: float) -> StageReport:
    return StageReport(
        name=name,
        ap50={"base": base, "novel": novel, "all": (2 * base + novel) / 3},
        ap={"base": base / 2, "novel": novel / 2, "all": base / 3},
        class_ap50={"mug": base, "kite": base, "<bell>": novel},
        losses={"box": LossCurve(steps=[1, 2, 3], values=[3.0, 2.0, 1.0])},
        precision={"base": np.linspace(1, 0, 101), "novel": np.linspace(0.5, 0, 101)},
        hit_scores={"base": np.array([0.5, 0.9]), "novel": np.array([])},
    )


@pytest.fixture(scope="module")
def full() -> ReportData:
    pixels = np.zeros((40, 60, 3), np.uint8)
    found = Detections(
        boxes_xyxy=torch.tensor([[1.0, 1.0, 20.0, 20.0]]),
        scores=torch.tensor([0.5]),
        class_ids=torch.tensor([2]),
        names=NAMES,
    )
    rows = np.random.default_rng(0).normal(size=(10, 4))
    return ReportData(
        title="A <title>",
        lead="What was run.",
        stages=[_stage("base", 50.0, 4.0), _stage("rkd_pis_wt", 60.0, 45.0)],
        roles=ROLES,
        examples=[ExamplePicture(pixels=pixels, found={"base": found, "rkd_pis_wt": found})],
        proposals=[
            ProposalPicture(
                pixels=pixels,
                boxes_xyxy={"RPN": np.array([[1, 1, 9, 9]]), "MAVL": np.zeros((0, 4))},
                truth_xyxy=np.array([[1, 1, 9, 9]]),
                truth_roles=["novel"],
            )
        ],
        proposal_recall={"RPN": {"novel, recall@5": 33.3}},
        panels=[EmbeddingPanel(title="CLIP", embeddings=rows), EmbeddingPanel(title="Base", embeddings=rows)],
        panel_labels=["kite", "<bell>"] * 5,
        seconds={"world": 3.0, "train base": 72.4},
        differs=["The images are drawn."],
        methods={"AP50": "IoU 0.5"},
        facts={"seed": "0"},
    )


@pytest.fixture(scope="module")
def page(full: ReportData) -> str:
    return render_report(full)


class _Checker(HTMLParser):
    """Collects ids and addresses, and checks that block tags are closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.ids: list[str] = []
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("div", "section", "figure", "table", "ul", "dl", "main", "footer", "header", "details", "svg"):
            self.open.append(tag)
        self.ids += [value or "" for name, value in attrs if name == "id"]
        self.addresses += [v or "" for n, v in attrs if n in ("src", "href", "xlink:href", "action", "data")]

    def handle_endtag(self, tag: str) -> None:
        if tag in ("div", "section", "figure", "table", "ul", "dl", "main", "footer", "header", "details", "svg"):
            assert self.open.pop() == tag


def test_page_is_whole_and_needs_nothing_beside_it(page: str) -> None:
    checker = _Checker()
    checker.feed(page)
    assert checker.open == []
    assert len(checker.ids) == len(set(checker.ids))
    assert all(a.startswith(("data:", "#")) for a in checker.addresses)
    assert not re.search(r"@import|url\((?!#)|<script", page)
    assert all(f"url(#{target})" not in page or target in checker.ids for target in re.findall(r"url\(#(\w+)\)", page))


def test_page_shows_the_numbers(page: str) -> None:
    # 45 / 60; the paper's 36.6 / 54.0 beside it, and its base row.
    for text in ("0.75", "0.68", "36.6", "53.2", "33.3", "1 min 12 s", "The images are drawn."):
        assert text in page
    assert "A &lt;title&gt;" in page
    assert "<bell>" not in page
    assert "#0a0" not in page  # every placeholder colour became a variable of the theme


def test_absent_means_absent(page: str) -> None:
    bare = render_report(
        ReportData(
            title="t",
            lead="l",
            stages=[StageReport(name="own_stage", ap50={"base": 0.0, "novel": 1.0}, ap={})],
            roles={},
        )
    )
    sections = ("examples", "classes", "precision", "proposals", "embeddings", "scores", "losses", "time", "methods")
    assert all(f'id="{section}"' in page for section in sections)
    assert not any(f'id="{section}"' in bare for section in sections)
    assert "own_stage" in bare
    assert ">nan<" not in bare


def test_same_data_gives_the_same_page(full: ReportData) -> None:
    light = replace(full, panels=(), panel_labels=(), seconds={}, examples=(), proposals=())
    assert render_report(light) == render_report(light)


def test_stage_without_a_loss_has_no_line_of_it() -> None:
    with_loss = _stage("base", 1, 1)
    without = replace(_stage("rkd", 1, 1), losses={})
    assert "RKD" not in loss_curves([with_loss, without])
    assert "Base" in loss_curves([with_loss, without])


def test_smooth_by_hand() -> None:
    # Weights 1/2, 1/4 normalised by 3/4: (2 * 4 + 1) / 3.
    assert smooth([1.0, 4.0]) == [1.0, 3.0]
    assert smooth([2.0] * 5) == [2.0] * 5


def test_minutes() -> None:
    assert minutes(59.4) == "59.4 s"
    assert minutes(72.4) == "1 min 12 s"
    assert minutes(605) == "10 min 05 s"
