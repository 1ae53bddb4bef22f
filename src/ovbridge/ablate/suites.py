"""The suites: the tables of arXiv 2207.03482 and the controls that it lacks.

Numbers of the paper: v1 is the first version (proposer trained on all names), final the last one (leak-free proposer);
where only one version gives a row, only that stands there.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from ovbridge.ablate.suite import Family, Numbers, Order, Run, Suite
from ovbridge.errors import ConfigError
from ovbridge.recipes.world import BEYOND

LONGER = 8.0
"""The paper's long schedule, times the short one."""
LONGER_IN_THE_WORLD = 2.0
"""What a quick suite can afford of it."""


def _coco(novel: float, base: float, everything: float) -> Numbers:
    return {"novel": novel, "base": base, "all": everything}


BASE = Run(name="base", title="supervised base", stage="base", paper={"final": _coco(1.7, 53.2, 39.6)})
RKD = Run(
    name="rkd",
    title="+ RKD",
    stage="rkd",
    start="base",
    paper={"v1": _coco(21.6, 54.4, 45.8), "final": _coco(21.2, 54.7, 45.9)},
)
PIS = Run(
    name="pis",
    title="+ PIS",
    stage="pis",
    start="base",
    paper={"v1": _coco(34.2, 52.0, 47.4), "final": _coco(30.4, 52.6, 46.8)},
)
NAIVE = Run(
    name="rkd_pis",
    title="RKD + PIS",
    stage="rkd_pis",
    start="base",
    paper={"v1": _coco(35.3, 52.9, 48.3), "final": _coco(31.5, 52.8, 47.2)},
)
WT = Run(
    name="rkd_pis_wt",
    title="RKD + PIS + WT",
    stage="rkd_pis_wt",
    start="rkd",
    paper={"v1": _coco(40.3, 54.1, 50.5), "final": _coco(36.6, 54.0, 49.4)},
)


def components(family: Family) -> Suite:
    """Table 1 of the results: what each part adds."""
    longer = Run(
        name="rkd_pis_wt_longer",
        title=f"RKD + PIS + WT, {LONGER if family != 'world' else LONGER_IN_THE_WORLD:g}x",
        stage="rkd_pis_wt" if family == "world" else "rkd_pis_wt_8x",
        start="rkd",
        steps_factor=LONGER_IN_THE_WORLD if family == "world" else 1.0,
        paper={"v1": _coco(40.5, 56.7, 52.5), "final": _coco(36.9, 56.6, 51.5)},
    )
    return Suite(
        name="components",
        title="Components",
        runs=(BASE, RKD, PIS, NAIVE, WT, longer),
        orders=(
            Order(lower="base", higher="rkd", claim="Table 5"),
            Order(lower="base", higher="pis", claim="Table 5"),
            Order(lower="rkd", higher="rkd_pis", claim="Table 5"),
            Order(lower="rkd_pis", higher="rkd_pis_wt", claim="Table 5"),
            Order(lower="rkd_pis", higher="rkd_pis_wt", group="base", claim="Table 5"),
            Order(lower="rkd_pis_wt", higher="rkd_pis_wt_longer", claim="Table 5"),
        ),
        note="WT starts from RKD and has one schedule more behind it than RKD + PIS: see the fair controls.",
    )


def rkd(family: Family) -> Suite:
    """Table 6 of v1: where the regions come from and which losses compare them."""
    l1_only = ("losses.rkd_relation=0",)
    paper_form = ("losses.relation_row_norm=l2", "losses.relation_reduction=mean_square")
    return Suite(
        name="rkd",
        title="Region-based distillation",
        runs=(
            BASE,
            Run(
                name="rkd_rpn_l1",
                title="RPN top 5, L1",
                stage="rkd",
                start="base",
                overrides=l1_only,
                labels="rpn",
                paper={"v1": _coco(4.0, 54.9, 41.6)},
            ),
            Run(
                name="rkd_l1",
                title="MViT top 5, L1",
                stage="rkd",
                start="base",
                overrides=l1_only,
                paper={"v1": _coco(16.7, 55.1, 45.0)},
            ),
            RKD,
            Run(
                name="rkd_paper_irm",
                title="MViT top 5, L1 + IRM as in Eq. 2",
                stage="rkd",
                start="base",
                overrides=paper_form,
            ),
        ),
        orders=(
            Order(lower="rkd_rpn_l1", higher="rkd_l1", claim="Table 6, v1"),
            Order(lower="rkd_l1", higher="rkd", claim="Table 6, v1"),
            Order(lower="rkd_l1", higher="rkd_paper_irm", claim="the same with Eq. 2 as printed"),
        ),
        note="'+ RKD' has L1 + IRM in the form of the released code: rows by L1, summed, times 100.",
    )


def ils(family: Family) -> Suite:
    """Table 7 of v1: which region an image-level label is taught to."""
    return Suite(
        name="ils",
        title="Image-level supervision",
        runs=(
            BASE,
            Run(
                name="ils_max_score_rpn",
                title="max-score on RPN",
                stage="pis",
                start="base",
                overrides=("losses.image_label_box=max_score",),
                paper={"v1": _coco(15.9, 48.2, 39.7)},
            ),
            Run(
                name="ils_max_size_rpn",
                title="max-size on RPN",
                stage="pis",
                start="base",
                overrides=("losses.image_label_box=max_size",),
                paper={"v1": _coco(25.9, 51.1, 44.5)},
            ),
            Run(
                name="ils_max_size_mvit",
                title='max-size on MViT "all objects"',
                stage="pis",
                start="base",
                labels="largest",
                overrides=("data.min_tag_score=0",),
                paper={"v1": _coco(28.9, 50.7, 45.0)},
            ),
            PIS,
        ),
        orders=(
            Order(lower="ils_max_score_rpn", higher="ils_max_size_rpn", claim="Table 7, v1"),
            Order(lower="ils_max_size_rpn", higher="ils_max_size_mvit", claim="Table 7, v1"),
            Order(lower="ils_max_size_mvit", higher="pis", claim="Table 7, v1"),
        ),
    )


def transfer(family: Family) -> Suite:
    """Appendix D: variants of weight transfer. Its numbers could not be recovered."""

    def variant(name: str, title: str, *overrides: str) -> Run:
        return Run(name=f"wt_{name}", title=title, stage="rkd_pis_wt", start="rkd", overrides=overrides)

    layers, random = "detector.projection.transfer.layers=", "detector.projection.transfer.start=random"
    # Only two layers with the residual branch can start at W_P = W_D, so the variants are compared from random layers.
    plain = variant("random_start", "two layers, residual, random start", random)
    return Suite(
        name="transfer",
        title="Weight transfer",
        runs=(
            BASE,
            RKD,
            WT,
            plain,
            variant("1_layer", "one layer", f"{layers}1", random),
            variant("3_layers", "three layers", f"{layers}3", random),
            variant(
                "no_residual", "without the residual branch", "detector.projection.transfer.residual=false", random
            ),
            variant(
                "trained_wd",
                "W_D trained",
                "detector.projection.transfer.freeze_distilled=false",
                "stage.frozen=",
            ),
        ),
        orders=(
            Order(lower="wt_no_residual", higher="wt_random_start", claim="Appendix D (numbers not recovered)"),
            Order(lower="wt_1_layer", higher="wt_random_start", claim="Appendix D (numbers not recovered)"),
            Order(lower="wt_random_start", higher="rkd_pis_wt", claim="option"),
            Order(lower="wt_trained_wd", higher="rkd_pis_wt", claim="§3.4"),
        ),
        note="RKD + PIS + WT has two layers, the residual branch and a frozen W_D; the recipe says how they start.",
    )


def controls(family: Family) -> Suite:
    """What the paper's table leaves open: the same start and the same number of steps."""
    return Suite(
        name="controls",
        title="Fair controls",
        runs=(
            BASE,
            RKD,
            NAIVE,
            Run(
                name="naive_from_rkd",
                title="RKD + PIS from the RKD checkpoint",
                stage="rkd_pis",
                start="rkd",
                overrides=("stage.init_from=rkd",),
            ),
            Run(
                name="naive_equal_steps",
                title="RKD + PIS for the steps of RKD and WT together",
                stage="rkd_pis",
                start="base",
                steps_of=("rkd", "rkd_pis_wt"),
            ),
            Run(
                name="base_equal_steps",
                title="base for the steps of RKD and WT together",
                stage="base",
                start="base",
                overrides=("stage.init_from=base",),
                steps_of=("rkd", "rkd_pis_wt"),
            ),
            WT,
        ),
        orders=(
            Order(lower="naive_from_rkd", higher="rkd_pis_wt", claim="control"),
            Order(lower="naive_equal_steps", higher="rkd_pis_wt", claim="control"),
            Order(lower="base_equal_steps", higher="rkd_pis_wt", claim="control"),
            Order(lower="rkd_pis", higher="naive_from_rkd", claim="control"),
        ),
        note="If WT leads its controls, its gain is not the longer training.",
    )


def strict(family: Family) -> Suite:
    """Novel names unknown while training (§4.4 of the final version; its numbers could not be recovered)."""
    return Suite(
        name="strict",
        title="Strict: target names unknown in training",
        runs=(
            BASE,
            RKD,
            Run(name="strict_base", title="base, strict vocabulary", stage="base", labels="strict"),
            Run(name="strict_rkd", title="+ RKD, strict", stage="rkd", start="strict_base", labels="strict"),
            Run(
                name="strict_wt",
                title="RKD + PIS + WT, strict",
                stage="rkd_pis_wt",
                start="strict_rkd",
                labels="strict",
            ),
            WT,
        ),
        orders=(
            Order(lower="strict_base", higher="strict_wt", claim="final version"),
            Order(lower="strict_wt", higher="rkd_pis_wt", claim="known against unknown names"),
        ),
        note="The paper's strict vocabulary is 5 times the default one; the built-in world has only 15 classes that "
        "are neither base nor novel, so there it is the base classes and these.",
    )


def cross(family: Family) -> Suite:
    """Another data set, its names swapped in, nothing trained on it."""
    rows = [
        Run(name=f"{run.name}_second", title=f"{run.title}, second data set", evaluates=run.name, data="second")
        for run in (BASE, RKD, WT)
    ]
    return Suite(
        name="cross",
        title="Cross-dataset transfer",
        runs=(BASE, RKD, WT, *rows),
        orders=(
            Order(lower="base_second", higher="rkd_second", group="all", claim="Table 4 has it for LVIS models"),
            Order(lower="base_second", higher="rkd_pis_wt_second", group="all", claim="Table 4 has it for LVIS models"),
        ),
        note="The paper's 56.6 (COCO), 42.9 (OpenImages) and 22.3 (Objects365) are box AP50 of a CenterNet2 detector "
        "trained on LVIS, which is none of these rows.",
    )


def beyond(family: Family) -> Suite:
    """Options that the paper does not have, on its best model and on its distillation."""

    def fused(name: str, title: str, source: str, *fuse: str) -> Run:
        return Run(name=f"wt_{name}", title=title, evaluates="rkd_pis_wt", fuse=fuse, source=source)

    def trained(name: str, title: str, source: str, *overrides: str) -> Run:
        return Run(name=f"wt_{name}", title=title, stage="rkd_pis_wt", start="rkd", overrides=overrides, source=source)

    refine, named = (
        [o for o in BEYOND if o.startswith(f"losses.{part}")] for part in ("image_label_", "named_regions")
    )
    rows = (
        fused("two_heads", "WT, W_D's head mixed in (0.5)", "after WiSE-FT, arXiv 2109.01903", "distilled_head=0.5"),
        fused(
            "objectness",
            "WT, objectness (0.3)",
            "LP-OVOD, arXiv 2310.17109",
            "objectness_base=0.3",
            "objectness_novel=0.3",
        ),
        fused(
            "clip",
            "WT, CLIP of the crop (base 0.1, novel 0.35)",
            "ViLD, arXiv 2104.13921, and F-VLM, arXiv 2209.15639",
            "clip_base=0.1",
            "clip_novel=0.35",
        ),
        fused(
            "all_three",
            "WT, two heads, objectness and CLIP",
            "the three above together",
            "distilled_head=0.5",
            "objectness_base=0.2",
            "objectness_novel=0.2",
            "clip_base=0.1",
            "clip_novel=0.3",
        ),
        fused(
            "prompts",
            "WT, four prompts",
            "prompt ensembles of CLIP, arXiv 2103.00020",
            "templates=a photo of a {},a drawing of a {},a small {},one {}",
        ),
        trained(
            "parts",
            "WT, parts of pseudo boxes as no object (0.2)",
            "suppression of partial boxes, after BIRDet's background information",
            "losses.image_label_parts=0.2",
        ),
        trained(
            "refine",
            "WT, pseudo boxes moved and regressed back (0.5)",
            "denoising of boxes as in DN-DETR, arXiv 2203.01305, on pseudo boxes",
            *refine,
        ),
        trained(
            "named",
            "WT, regions that CLIP names (0.9) as boxes",
            "pseudo boxes named by CLIP as in VL-PLM, arXiv 2207.08954",
            *named,
        ),
        trained("refine_named", "WT, moved and regressed back, and named regions", "the two above together", *BEYOND),
    )
    swaps = (
        Run(
            name="rkd_barlow",
            title="+ RKD by Barlow Twins",
            stage="rkd",
            start="base",
            source="Barlow Twins, arXiv 2103.03230; the public re-implementation of this paper uses it",
            overrides=("losses.rkd_l1=0", "losses.rkd_relation=0", "losses.rkd_barlow=1.0"),
        ),
        Run(
            name="rkd_info_nce",
            title="+ RKD by InfoNCE",
            stage="rkd",
            start="base",
            source="InfoNCE, arXiv 1807.03748",
            overrides=("losses.rkd_l1=0", "losses.rkd_relation=0", "losses.rkd_info_nce=0.2"),
        ),
        Run(
            name="rkd_l1_info_nce",
            title="+ RKD by L1, IRM and InfoNCE",
            stage="rkd",
            start="base",
            source="InfoNCE beside the paper's two",
            overrides=("losses.rkd_info_nce=0.2",),
        ),
    )
    again = Run(
        name="wt_self_trained",
        title="WT on boxes of the first WT",
        stage="rkd_pis_wt",
        start="rkd",
        labels="self",
        overrides=("data.min_tag_score=0",),
        source="SAS-Det, arXiv 2308.06412, one round",
    )
    options = (*rows, again)
    return Suite(
        name="beyond",
        title="Beyond the paper",
        runs=(BASE, RKD, WT, *options, *swaps),
        orders=tuple(Order(lower="rkd_pis_wt", higher=r.name, claim="option") for r in options)
        + tuple(Order(lower="rkd_pis_wt", higher=r.name, group="base", or_equal=True, claim="option") for r in options)
        + tuple(Order(lower="rkd", higher=r.name, claim="option") for r in swaps),
        note="Weights are as written, not searched for on these pictures.",
    )


SUITES: dict[str, Callable[[Family], Suite]] = {
    function.__name__: function for function in (components, rkd, ils, transfer, controls, strict, cross, beyond)
}


QUICK_SUITES = ("components", "rkd", "ils", "beyond")
QUICK_ROWS = (
    *("base", "rkd", "pis", "rkd_pis", "rkd_pis_wt"),
    *("rkd_rpn_l1", "rkd_l1", "rkd_paper_irm", "rkd_barlow"),
    *("ils_max_score_rpn", "ils_max_size_rpn", "ils_max_size_mvit"),
    *("wt_two_heads", "wt_objectness", "wt_refine_named"),
)
"""`ovbridge ablate quick`: every order that the paper claims, and the additions that need no search."""


def _lvis(rare: float, common: float, frequent: float, everything: float) -> Numbers:
    return {"r": rare, "c": common, "f": frequent, "all": everything}


LVIS_NUMBERS: dict[str, dict[str, Numbers]] = {
    "base": {"final": _lvis(12.2, 19.4, 26.4, 20.9)},
    "rkd": {"final": _lvis(15.2, 20.2, 27.3, 22.1)},
    "pis": {"final": _lvis(17.0, 21.2, 26.1, 22.4)},
    "rkd_pis": {"final": _lvis(17.3, 20.9, 25.5, 22.1)},
    "rkd_pis_wt": {"v1": _lvis(17.2, 21.5, 26.6, 22.8), "final": _lvis(17.1, 21.4, 26.7, 22.8)},
    "rkd_pis_wt_longer": {"final": _lvis(21.1, 25.0, 29.1, 25.9)},
}
"""Mask AP on OV-LVIS; the paper has no other rows there."""
LVIS_GROUPS = {"novel": "r", "base": "f"}


def suite_named(name: str, family: Family) -> Suite:
    """A suite by name; raises ConfigError listing the known ones."""
    if name not in SUITES:
        raise ConfigError(f"there is no suite {name!r}: choose among {', '.join(SUITES)}")
    suite = SUITES[name](family)
    if family != "lvis":
        return suite
    return replace(
        suite,
        runs=tuple(replace(run, paper=LVIS_NUMBERS.get(run.name, {})) for run in suite.runs),
        orders=tuple(replace(order, group=LVIS_GROUPS.get(order.group, order.group)) for order in suite.orders),
    )
