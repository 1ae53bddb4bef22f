import math

import pytest

from ovbridge.ablate.second_world import other_names
from ovbridge.ablate.settings import AblateSettings, claim
from ovbridge.ablate.sharing import own_file, share_out, taken
from ovbridge.ablate.sources import Sources
from ovbridge.ablate.suite import Order, Run, Suite, in_order, with_rows
from ovbridge.ablate.suites import QUICK_ROWS, QUICK_SUITES, SUITES, suite_named
from ovbridge.ablate.table import Figure, Measured, html_table, judge, markdown, summarise
from ovbridge.config_tree import apply_overrides
from ovbridge.errors import ConfigError
from ovbridge.recipes import recipe_named
from ovbridge.rescoring import ScoreFusion


@pytest.mark.parametrize("family", ["world", "coco", "lvis"])
@pytest.mark.parametrize("name", SUITES)
def test_every_row_is_a_run_that_the_recipes_know(name, family):
    suite = suite_named(name, family)
    ordered = [run.name for run in in_order(suite.runs)]
    for run in suite.runs:
        if run.is_trained:
            apply_overrides(recipe_named(family, run.stage), run.overrides)
        apply_overrides(ScoreFusion(), run.fuse)
        for before in filter(None, (run.start, run.evaluates)):
            assert ordered.index(before) < ordered.index(run.name)
    for order in suite.orders:
        assert {order.lower, order.higher} <= set(ordered)


@pytest.mark.parametrize("family", ["world", "coco", "lvis"])
def test_suites_share_their_runs(family):
    runs = in_order([run for name in SUITES for run in suite_named(name, family).runs])
    assert len({run.name for run in runs}) == len(runs)
    with pytest.raises(ConfigError, match="two different runs are named 'base'"):
        in_order([Run(name="base", title="a"), Run(name="base", title="b")])
    with pytest.raises(ConfigError, match="needs 'rkd'"):
        in_order([Run(name="wt", title="x", start="rkd")])


def test_the_quick_rows_keep_every_order_that_the_paper_claims():
    whole = [suite_named(name, "world") for name in QUICK_SUITES]
    quick = [with_rows(suite, QUICK_ROWS) for suite in whole]
    assert {run.name for suite in quick for run in suite.runs} == set(QUICK_ROWS)

    def claimed(suites):
        return {(o.lower, o.higher) for s in suites for o in s.orders if "Table" in o.claim}

    longer_left_out = ("rkd_pis_wt", "rkd_pis_wt_longer")
    assert claimed(quick) == claimed(whole) - {longer_left_out}


def test_mean_and_sample_spread():
    figure = Figure.of([1.0, 2.0, 6.0])
    assert (figure.mean, figure.spread) == (3.0, pytest.approx(math.sqrt((4 + 1 + 9) / 2)))
    assert str(figure) == "3.0 ± 2.6"
    assert str(Figure.of([1.25])) == "1.2"


def _judge(lower, higher, *, or_equal=False):
    return judge(
        Order(lower="a", higher="b", or_equal=or_equal),
        {seed: {"novel": v} for seed, v in enumerate(lower)},
        {seed: {"novel": v} for seed, v in enumerate(higher)},
    )


def test_an_order_is_judged_by_paired_differences():
    # Seeds move both rows alike: paired, the difference is 1 ± 0.1 although each row spreads by 10.
    assert _judge([0, 10, 20], [1.0, 11.1, 20.9]).holds == "holds"
    assert _judge([0, 0, 0], [5, -2, 0]).holds == "holds on average, within the spread"
    assert _judge([1, 1], [0, 0.5]).holds == "does not hold"
    assert _judge([1], [2]).holds == "holds on average, within the spread", "one seed has no spread to exceed"
    assert _judge([], []).holds == "unknown"
    assert _judge([1, 2], [1, 2], or_equal=True).holds == "holds"
    assert _judge([1, 2], [0.5, 2.2], or_equal=True).holds == "does not hold on average, within the spread"
    assert _judge([1, 2], [0, 1.1], or_equal=True).holds == "does not hold"
    assert _judge([1], [1], or_equal=True).holds == "holds on average, within the spread"


@pytest.fixture
def result():
    runs = (
        Run(name="base", title="base | x", paper={"final": {"novel": 1.7, "base": 53.2}}),
        Run(name="rkd", title="+ RKD", paper={"v1": {"novel": 21.6}}),
    )
    suite = Suite(name="s", title="Some", runs=runs, orders=(Order(lower="base", higher="rkd", claim="T5"),), note="n")
    rows = {
        "base": {0: {"novel": 1.0, "base": 40.0}, 1: {"novel": 3.0, "base": 42.0}},
        "rkd": {0: {"novel": 11.0, "base": 41.0}, 1: {"novel": 12.0, "base": 44.0}},
    }
    return _filled(suite, rows, {"base": BOX_AP50, "rkd": BOX_AP50})


BOX_AP50 = Measured(protocol="ov-coco", metric="box AP50")


def _filled(suite, rows, measured):
    verdicts = {"base": "clean", "rkd": "known vocabulary"}
    return summarise(suite, rows, verdicts, measured=measured, paper_metric="box AP50", settings={})


def test_markdown_has_ours_and_the_papers(result):
    lines = markdown(result).splitlines()
    assert "| base \\| x | 2.0 ± 1.4 | 41.0 ± 1.4 | – | – | 1.7 | 53.2 | ov-coco, box AP50 | clean |" in lines
    assert "| + RKD | 11.5 ± 0.7 | 42.5 ± 2.1 | 21.6 | – | – | – | ov-coco, box AP50 | known vocabulary |" in lines
    assert "- base | x < + RKD, novel (T5): holds, by 9.5 ± 0.7 (2 of 2 seeds)" in lines
    assert "Mean ± sample standard deviation over the seeds 0, 1." in lines


def test_numbers_of_different_metrics_are_never_compared(result):
    rows = {"base": {0: {"novel": 9.0}, 1: {"novel": 9.0}}, "rkd": {0: {"novel": 5.0}, 1: {"novel": 5.0}}}
    mixed = _filled(result.suite, rows, {"base": BOX_AP50, "rkd": Measured(protocol="lvis", metric="mask AP")})
    assert mixed.orders[0].holds == "unknown"
    text = markdown(mixed)
    assert "| base \\| x | 9.0 ± 0.0 | 1.7 | ov-coco, box AP50 | clean |" in text
    assert "| + RKD | 5.0 ± 0.0 | – | lvis, mask AP | known vocabulary |" in text, "the paper's number is a box AP50"
    assert "| run | novel | paper final novel |" in text


def test_how_a_record_was_measured():
    coco = {"protocol": "strict", "iou_type": "bbox", "ap50": {"base": 1.0, "novel": 2.0}, "ap": {}}
    lvis = {"protocol": "ov-lvis", "iou_type": "segm", "ap50": {"r": 1.0}, "ap": {"r": 1.0}}
    assert str(Measured.of(coco)) == "strict, box AP50"
    assert Measured.of(coco).key == "ap50"
    assert str(Measured.of(lvis)) == "ov-lvis, mask AP"
    assert str(Measured.of(lvis | {"iou_type": "bbox"})) == "ov-lvis, box AP"
    assert Measured.of(lvis).key == "ap"


def test_html_and_json_say_the_same(result):
    page = html_table(result)
    assert "2.0 ± 1.4" in page
    assert 'class="holds"' in page
    record = result.to_json()
    assert record["rows"]["rkd"]["numbers"]["novel"] == {"mean": 11.5, "spread": pytest.approx(0.7071, abs=1e-4),
                                                         "values": (11.0, 12.0)}  # fmt: skip
    assert record["orders"][0]["values"] == [10.0, 9.0]


def test_a_folder_belongs_to_one_ablation(tmp_path):
    out = tmp_path / "ablation"
    claim(out, AblateSettings())
    claim(out, AblateSettings())
    with pytest.raises(ConfigError, match=r"another ablation.*clip"):
        claim(out, AblateSettings(clip="other"))
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "x").touch()
    with pytest.raises(ConfigError, match="files that are no ablation"):
        claim(tmp_path / "foreign", AblateSettings())


def test_the_second_world_has_other_names():
    names = other_names([("mug", ("mug", "cup")), ("cup board", ("cupboard",)), ("bat", ("stick",)), ("stick", ())])
    assert names == {"mug": "cup", "cup board": "cupboard", "bat": "bat", "stick": "stick"}


def test_chosen_rows_bring_what_they_build_on() -> None:
    suite = suite_named("components", "world")
    assert with_rows(suite, ()) == suite
    chosen = with_rows(suite, ["rkd_pis_wt"])
    assert [run.name for run in chosen.runs] == ["base", "rkd", "rkd_pis_wt"]
    assert {name for order in chosen.orders for name in (order.lower, order.higher)} <= {"base", "rkd", "rkd_pis_wt"}
    assert chosen.orders
    assert with_rows(suite_named("rkd", "world"), ["rkd_pis_wt"]).runs == ()
    assert [r.name for r in with_rows(suite_named("rkd", "world"), ["rkd_rpn_l1"]).runs] == ["base", "rkd_rpn_l1"]


@pytest.mark.parametrize(
    ("suite", "settings", "fault"),
    [
        ("cross", {}, "--second-annotations"),
        ("strict", {}, "--strict-data"),
        ("ils", {}, "--clip"),
        ("ils", {"clip": "ViT-B-32"}, "--proposer builtin"),
        ("beyond", {}, "--val-annotations"),
    ],
)
def test_what_is_missing_at_full_scale_is_said_before_anything_is_trained(tmp_path, suite, settings, fault):
    folders = {"data": str(tmp_path), "store": str(tmp_path)}
    sources = Sources(tmp_path / "out", AblateSettings(family="coco", **folders, **settings))
    with pytest.raises(ConfigError, match=fault):
        sources.check(suite_named(suite, "coco").runs)
    assert not (tmp_path / "out").exists()


def test_two_processes_share_the_tasks(tmp_path):
    done, busy = [], {"b"}

    def do(task):
        if task in busy:
            return False
        done.append(task)
        return True

    share_out(["a", "b", "c"], lambda task: task != "c" or "b" in done, do, busy.clear)
    assert done == ["a", "b", "c"], "c waits for b, b for the other process"
    with taken(tmp_path / "x.lock") as first, taken(tmp_path / "x.lock") as second:
        assert (first, second) == (True, False)
    with own_file(tmp_path, "steps", ".json") as first, own_file(tmp_path, "steps", ".json") as second:
        assert (first.name, second.name) == ("steps.json", "steps_2.json")
