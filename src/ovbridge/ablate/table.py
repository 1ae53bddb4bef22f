"""Mean and spread over seeds, what they say of each order, and the table in Markdown and HTML."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ovbridge.ablate.suite import Order, Suite

Holds = Literal["holds", "holds on average, within the spread", "does not hold", "unknown"]

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
        relation = f"{titles[o.lower]} < {titles[o.higher]}, {o.group}{claim}: {self.holds}"
        if self.difference is None:
            return relation
        above = sum(v > 0 for v in self.difference.values)
        return f"{relation}, by {self.difference} ({above} of {len(self.difference.values)} seeds)"


@dataclass(frozen=True, kw_only=True)
class SuiteResult:
    """One table, filled."""

    suite: Suite
    metric: str
    rows: Mapping[str, Mapping[str, Figure]]
    """Run → group → figure."""
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
    metric: str,
    settings: Mapping[str, Any],
) -> SuiteResult:
    """The table of a suite out of run → seed → group → percent."""
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
        metric=metric,
        rows=figures,
        verdicts=verdicts,
        orders=tuple(judge(order, rows[order.lower], rows[order.higher]) for order in suite.orders),
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
    holds: Holds = "does not hold"
    if figure.mean > 0:
        alone = math.isnan(figure.spread)
        holds = "holds" if not alone and figure.mean > figure.spread else "holds on average, within the spread"
    return OrderResult(order=order, holds=holds, difference=figure)


def markdown(result: SuiteResult) -> str:
    """The table, its orders and its note."""
    groups = result.groups
    versions = [v for v in ("v1", "final") if any(v in run.paper for run in result.suite.runs)]
    head = ["run", *(f"{result.metric} {g}" for g in groups), *(f"paper {v} {g}" for v in versions for g in groups)]
    lines = [
        f"## {result.suite.title}",
        "",
        _row([*head, "novel names in training"]),
        "|---|" + "---:|" * (len(head) - 1) + "---|",
    ]
    for run in result.suite.runs:
        ours = [str(result.rows[run.name][g]) if g in result.rows[run.name] else "–" for g in groups]
        theirs = [_paper(run.paper.get(v, {}).get(g)) for v in versions for g in groups]
        lines.append(_row([run.title, *ours, *theirs, result.verdicts[run.name]]))
    seeds = ", ".join(map(str, result.seeds))
    lines += [
        "",
        f"Mean ± sample standard deviation over the seeds {seeds}."
        if len(result.seeds) > 1
        else f"Seed {seeds}: one run, no spread.",
    ]
    if result.suite.note:
        lines += ["", result.suite.note]
    lines += [""] + [f"- {r.sentence(result.titles)}" for r in result.orders]
    return "\n".join(lines) + "\n"


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def _paper(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def html_table(result: SuiteResult) -> str:
    """The same as one `<section>` for a page."""
    groups = result.groups
    versions = [v for v in ("v1", "final") if any(v in run.paper for run in result.suite.runs)]
    head = "".join(f"<th>{result.metric} {g}</th>" for g in groups)
    head += "".join(f'<th class="paper">paper {v} {g}</th>' for v in versions for g in groups)
    body = []
    for run in result.suite.runs:
        cells = [
            f'<td class="{g}">{result.rows[run.name][g]}</td>' if g in result.rows[run.name] else "<td>–</td>"
            for g in groups
        ]
        cells += [f'<td class="paper">{_paper(run.paper.get(v, {}).get(g))}</td>' for v in versions for g in groups]
        verdict = html.escape(result.verdicts[run.name])
        body.append(f"<tr><td>{html.escape(run.title)}<small>novel names: {verdict}</small></td>{''.join(cells)}</tr>")
    orders = "".join(
        f'<li class="{r.holds.split(",")[0].replace(" ", "-")}">{html.escape(r.sentence(result.titles))}</li>'
        for r in result.orders
    )
    note = f"<p>{html.escape(result.suite.note)}</p>" if result.suite.note else ""
    return (
        f'<section id="{result.suite.name}"><h2>{html.escape(result.suite.title)}</h2>{note}'
        f'<div class="scroll"><table><thead><tr><th>run</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
        f"<ul>{orders}</ul></section>"
    )
