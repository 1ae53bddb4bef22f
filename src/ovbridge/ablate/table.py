"""Mean and spread over seeds, what they say of each order, and the table in Markdown and HTML."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ovbridge.ablate.suite import Order, Run, Suite

Holds = Literal[
    "holds",
    "holds on average, within the spread",
    "does not hold on average, within the spread",
    "does not hold",
    "unknown",
]

GROUP_ORDER = ("novel", "r", "base", "c", "f", "all")


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A number over seeds."""

    mean: float
    spread: float
    """Sample standard deviation; NaN with one seed."""
    values: tuple[float, ...]

    @classmethod
    def of(cls, values: Sequence[float]) -> Figure:
        """Mean and spread of what each seed gave."""
        spread = statistics.stdev(values) if len(values) > 1 else math.nan
        return cls(mean=statistics.fmean(values), spread=spread, values=tuple(values))

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if math.isnan(self.spread) else f"{self.mean:.1f} ± {self.spread:.1f}"


@dataclass(frozen=True, kw_only=True)
class Measured:
    """How the numbers of a row were taken. Numbers of different metrics are not compared."""

    protocol: str
    """As `evaluate --protocol`."""
    metric: str
    """box AP50, mask AP or box AP."""

    @property
    def key(self) -> str:
        """Where a record of `evaluate` has them."""
        return "ap50" if self.metric.endswith("AP50") else "ap"

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> Measured:
        """What the paper reports under a protocol: AP over IoU 0.50 to 0.95 by LVIS rules, AP50 otherwise."""
        if "r" not in record["ap50"]:
            return cls(protocol=record["protocol"], metric="box AP50")
        kind = "mask" if record["iou_type"] == "segm" else "box"
        return cls(protocol=record["protocol"], metric=f"{kind} AP")

    def __str__(self) -> str:
        return f"{self.protocol}, {self.metric}"


@dataclass(frozen=True, kw_only=True)
class OrderResult:
    """What the seeds say of one order."""

    order: Order
    holds: Holds
    difference: Figure | None
    """Higher row minus lower row, seed by seed; None where a number is missing."""

    def sentence(self, titles: Mapping[str, str]) -> str:
        """One line."""
        o = self.order
        claim = f" ({o.claim})" if o.claim else ""
        sign = "≤" if o.or_equal else "<"
        relation = f"{titles[o.lower]} {sign} {titles[o.higher]}, {o.group}{claim}: {self.holds}"
        if self.difference is None:
            return relation
        above = sum(v > 0 for v in self.difference.values)
        return f"{relation}, by {self.difference} ({above} of {len(self.difference.values)} seeds)"


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """One table, filled."""

    suite: Suite
    paper_metric: str
    """What the paper's numbers are; they stand only beside rows that were measured so."""
    rows: Mapping[str, Mapping[str, Figure]]
    """Run → group → figure."""
    measured: Mapping[str, Measured]
    """Run → how."""
    verdicts: Mapping[str, str]
    """Run → verdict of the leak audit."""
    orders: tuple[OrderResult, ...]
    seeds: tuple[int, ...]
    settings: Mapping[str, Any]

    @property
    def groups(self) -> list[str]:
        """Groups that any row has, in a fixed order."""
        there = {group for row in self.rows.values() for group in row}
        return [g for g in GROUP_ORDER if g in there]

    @property
    def metric(self) -> str:
        """The metric of all rows; empty where they differ."""
        metrics = {m.metric for m in self.measured.values()}
        return metrics.pop() if len(metrics) == 1 else ""

    @property
    def paper_versions(self) -> list[str]:
        """Versions of the paper that have a number for a row as it was measured."""
        return [
            v
            for v in ("v1", "final")
            if any(self.paper_number(run, v, g) for run in self.suite.runs for g in self.groups)
        ]

    def paper_number(self, run: Run, version: str, group: str) -> float | None:
        """The paper's number beside ours; None where it has none, or one of another metric."""
        if self.measured[run.name].metric != self.paper_metric:
            return None
        return run.paper.get(version, {}).get(group)

    @property
    def titles(self) -> dict[str, str]:
        """Run → title."""
        return {run.name: run.title for run in self.suite.runs}

    def to_json(self) -> dict[str, Any]:
        """Everything, JSON-ready."""
        return {
            "suite": self.suite.name,
            "metric": self.metric,
            "seeds": list(self.seeds),
            "rows": {
                run.name: {
                    "title": run.title,
                    "leaks": self.verdicts[run.name],
                    "protocol": self.measured[run.name].protocol,
                    "metric": self.measured[run.name].metric,
                    "source": run.source,
                    "numbers": {
                        group: {
                            "mean": f.mean,
                            "spread": None if math.isnan(f.spread) else f.spread,
                            "values": f.values,
                        }
                        for group, f in self.rows[run.name].items()
                    },
                    "paper": {version: dict(numbers) for version, numbers in run.paper.items()},
                }
                for run in self.suite.runs
            },
            "orders": [
                {
                    "lower": r.order.lower,
                    "higher": r.order.higher,
                    "group": r.order.group,
                    "holds": r.holds,
                    "difference": None if r.difference is None else r.difference.mean,
                    "values": None if r.difference is None else list(r.difference.values),
                    "sentence": r.sentence(self.titles),
                }
                for r in self.orders
            ],
            "settings": dict(self.settings),
        }


def summarise(
    suite: Suite,
    rows: Mapping[str, Mapping[int, Mapping[str, float]]],
    verdicts: Mapping[str, str],
    *,
    measured: Mapping[str, Measured],
    paper_metric: str,
    settings: Mapping[str, Any],
) -> SuiteResult:
    """The table of a suite out of run → seed → group → percent."""

    def judged(order: Order) -> OrderResult:
        if measured[order.lower].metric != measured[order.higher].metric:
            return OrderResult(order=order, holds="unknown", difference=None)
        return judge(order, rows[order.lower], rows[order.higher])

    seeds = sorted({seed for by_seed in rows.values() for seed in by_seed})
    figures = {
        name: {
            group: Figure.of([by_seed[s][group] for s in seeds if s in by_seed and group in by_seed[s]])
            for group in GROUP_ORDER
            if any(group in numbers for numbers in by_seed.values())
        }
        for name, by_seed in rows.items()
    }
    return SuiteResult(
        suite=suite,
        paper_metric=paper_metric,
        rows=figures,
        measured=measured,
        verdicts=verdicts,
        orders=tuple(judged(order) for order in suite.orders),
        seeds=tuple(seeds),
        settings=settings,
    )


def judge(
    order: Order, lower: Mapping[int, Mapping[str, float]], higher: Mapping[int, Mapping[str, float]]
) -> OrderResult:
    """Whether an order holds: the mean difference over seeds against the spread of that difference."""
    differences = [
        higher[seed][order.group] - lower[seed][order.group]
        for seed in sorted(lower.keys() & higher.keys())
        if order.group in lower[seed] and order.group in higher[seed]
    ]
    if not differences:
        return OrderResult(order=order, holds="unknown", difference=None)
    figure = Figure.of(differences)
    return OrderResult(order=order, holds=_verdict(figure, or_equal=order.or_equal), difference=figure)


def _verdict(difference: Figure, *, or_equal: bool) -> Holds:
    mean, spread = difference.mean, difference.spread
    if math.isnan(spread):
        # One seed has no spread to exceed.
        above = mean >= 0 if or_equal else mean > 0
        return "holds on average, within the spread" if above else "does not hold"
    if or_equal:
        if mean >= 0:
            return "holds"
        return "does not hold" if -mean > spread else "does not hold on average, within the spread"
    if mean > 0:
        return "holds" if mean > spread else "holds on average, within the spread"
    return "does not hold"


def markdown(result: SuiteResult) -> str:
    """The table, its orders and its note."""
    groups = result.groups
    versions = result.paper_versions
    columns = [f"{result.metric} {g}".strip() for g in groups]
    head = ["run", *columns, *(f"paper {v} {g}" for v in versions for g in groups), "measured as"]
    lines = [
        f"## {result.suite.title}",
        "",
        _row([*head, "novel names in training"]),
        "|---|" + "---:|" * (len(head) - 2) + "---|---|",
    ]
    for run in result.suite.runs:
        ours = [str(result.rows[run.name][g]) if g in result.rows[run.name] else "–" for g in groups]
        theirs = [_paper(result.paper_number(run, v, g)) for v in versions for g in groups]
        measured = str(result.measured[run.name])
        lines.append(_row([run.title, *ours, *theirs, measured, result.verdicts[run.name]]))
    lines += ["", _seeds_line(result)]
    if result.suite.note:
        lines += ["", result.suite.note]
    sourced = [f"{run.title}: {run.source}" for run in result.suite.runs if run.source]
    if sourced:
        lines += ["", f"Sources: {'; '.join(sourced)}."]
    lines += [""] + [f"- {r.sentence(result.titles)}" for r in result.orders]
    return "\n".join(lines) + "\n"


def _seeds_line(result: SuiteResult) -> str:
    seeds = ", ".join(map(str, result.seeds))
    if len(result.seeds) > 1:
        return f"Mean ± sample standard deviation over the seeds {seeds}."
    return f"Seed {seeds}: one run, no spread."


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _paper(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def html_table(result: SuiteResult) -> str:
    """The same as one `<section>` for a page."""
    groups = result.groups
    versions = result.paper_versions
    head = "".join(f"<th>{f'{result.metric} {g}'.strip()}</th>" for g in groups)
    head += "".join(f'<th class="paper">paper {v} {g}</th>' for v in versions for g in groups)
    body = []
    for run in result.suite.runs:
        cells = [
            f'<td class="{g}">{result.rows[run.name][g]}</td>' if g in result.rows[run.name] else "<td>–</td>"
            for g in groups
        ]
        cells += [f'<td class="paper">{_paper(result.paper_number(run, v, g))}</td>' for v in versions for g in groups]
        small = f"{result.measured[run.name]}; novel names: {result.verdicts[run.name]}"
        small += f"; {run.source}" if run.source else ""
        title = f"{html.escape(run.title)}<small>{html.escape(small)}</small>"
        body.append(f"<tr><td>{title}</td>{''.join(cells)}</tr>")
    orders = "".join(
        f'<li class="{r.holds.split(",")[0].replace(" ", "-")}">{html.escape(r.sentence(result.titles))}</li>'
        for r in result.orders
    )
    note = f"<p>{html.escape(result.suite.note)}</p>" if result.suite.note else ""
    note += f"<p>{html.escape(_seeds_line(result))}</p>"
    return (
        f'<section id="{result.suite.name}"><h2>{html.escape(result.suite.title)}</h2>{note}'
        f'<div class="scroll"><table><thead><tr><th>run</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f"<ul>{orders}</ul></section>"
    )
