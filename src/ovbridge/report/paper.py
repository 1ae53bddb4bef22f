"""The paper's own figures that a report sets beside its own (arXiv 2207.03482, OV-COCO, box AP50).

The final version retrained the proposer without the novel names (36.6 novel); the first one did not (40.3). A run
with leak-free proposals compares with `FINAL`, one whose proposer saw every name with `FIRST_VERSION`.
"""

from __future__ import annotations

from collections.abc import Mapping

FINAL: Mapping[str, Mapping[str, float]] = {
    "base": {"base": 53.2, "novel": 1.7, "all": 39.6},
    "rkd": {"base": 54.7, "novel": 21.2, "all": 45.9},
    "pis": {"base": 52.6, "novel": 30.4, "all": 46.8},
    "rkd_pis": {"base": 52.8, "novel": 31.5, "all": 47.2},
    "rkd_pis_wt": {"base": 54.0, "novel": 36.6, "all": 49.4},
}
FIRST_VERSION: Mapping[str, Mapping[str, float]] = {
    "base": {"base": 53.2, "novel": 1.7, "all": 39.6},
    "rkd": {"base": 54.4, "novel": 21.6, "all": 45.8},
    "pis": {"base": 52.0, "novel": 34.2, "all": 47.4},
    "rkd_pis": {"base": 52.9, "novel": 35.3, "all": 48.3},
    "rkd_pis_wt": {"base": 54.1, "novel": 40.3, "all": 50.5},
}

STAGE_TITLES: Mapping[str, str] = {
    "base": "Base",
    "rkd": "RKD",
    "pis": "PIS",
    "rkd_pis": "RKD + PIS",
    "rkd_pis_wt": "RKD + PIS + WT",
}
STAGE_MEANINGS: Mapping[str, str] = {
    "base": "boxes of the base classes only",
    "rkd": "region distillation from CLIP",
    "pis": "pseudo boxes from image tags",
    "rkd_pis": "both, one shared projection",
    "rkd_pis_wt": "both, joined by weight transfer",
}


def stage_title(name: str) -> str:
    """How a stage is written in tables and legends."""
    return STAGE_TITLES.get(name, name)
