"""What a suite is: named runs, each a recipe's stage with overrides that may start from another run, and orders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from ovbridge.errors import ConfigError

Family = Literal["world", "coco", "lvis"]
Labels = Literal["default", "rpn", "largest", "self", "strict"]
"""Whose labels a run trains on. default: the proposer's. rpn: regions of the base run's own proposal network. largest:
tags at the proposer's largest class-agnostic box. self: tags where the seed's best model finds them. strict: labels of
classes that avoid every novel name."""

LABELLED_BY: Mapping[Labels, str] = {"rpn": "base", "self": "rkd_pis_wt"}
"""Labels → the run of the same seed that makes them."""

Numbers = Mapping[str, float]
"""AP50 in percent by group: base, novel, all (OV-COCO), or mask AP r, c, f, all (OV-LVIS)."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """One row of a table. The same run in several suites is trained once."""

    name: str
    """Its folder."""
    title: str
    """Its line in the table."""
    stage: str = ""
    """Stage of the family's recipe; empty for a row that only evaluates another run otherwise."""
    start: str = ""
    """Run whose checkpoint it starts from; empty takes what the recipe starts from."""
    overrides: tuple[str, ...] = ()
    """Settings of the recipe to change."""
    labels: Labels = "default"
    steps_of: tuple[str, ...] = ()
    """Train for the steps of these stages together instead of its own."""
    steps_factor: float = 1.0
    """Train for so many times the steps."""
    evaluates: str = ""
    """Run whose checkpoint is evaluated with `fuse`; nothing is trained."""
    fuse: tuple[str, ...] = ()
    """Settings of `ScoreFusion`."""
    data: Literal["default", "second"] = "default"
    """second: evaluated on another data set with other names."""
    paper: Mapping[str, Numbers] = field(default_factory=dict)
    """Version of the paper → its numbers for this row; empty where it has none."""
    source: str = ""
    """Where an option that the paper does not have comes from."""

    @property
    def is_trained(self) -> bool:
        """Whether it has a training of its own."""
        return not self.evaluates


@dataclass(frozen=True, kw_only=True)
class Order:
    """A claim that one row's number lies above another's."""

    lower: str
    higher: str
    group: str = "novel"
    """Which number."""
    or_equal: bool = False
    """Only that it does not lie below."""
    claim: str = ""
    """Where it is claimed, or that it is a control."""


@dataclass(frozen=True, kw_only=True)
class Suite:
    """One table."""

    name: str
    title: str
    runs: tuple[Run, ...]
    orders: tuple[Order, ...] = ()
    note: str = ""
    """What to know beside the numbers."""

    def run(self, name: str) -> Run:
        """The row of that name."""
        return next(run for run in self.runs if run.name == name)


def with_rows(suite: Suite, rows: Sequence[str]) -> Suite:
    """The suite with these rows alone and those that they start from or evaluate; all of them if `rows` is empty."""
    if not rows:
        return suite
    kept: set[str] = set()

    def keep(name: str) -> None:
        run = next((run for run in suite.runs if run.name == name), None)
        if run is not None and name not in kept:
            kept.add(name)
            for before in needs(run):
                keep(before)

    for name in rows:
        keep(name)
    return replace(
        suite,
        runs=tuple(run for run in suite.runs if run.name in kept),
        orders=tuple(order for order in suite.orders if {order.lower, order.higher} <= kept),
    )


def needs(run: Run) -> list[str]:
    """Names of the runs that it starts from, evaluates, or has its labels from."""
    return [name for name in (run.start, run.evaluates, LABELLED_BY.get(run.labels, "")) if name]


def in_order(runs: Sequence[Run]) -> list[Run]:
    """Each run once, after the one it starts from or evaluates; raises ConfigError for a start that is not there."""
    by_name: dict[str, Run] = {}
    for run in runs:
        if by_name.setdefault(run.name, run) != run:
            raise ConfigError(f"two different runs are named {run.name!r}: rename one")
    ordered: list[Run] = []

    def add(run: Run) -> None:
        for name in needs(run):
            if name not in by_name:
                raise ConfigError(f"run {run.name!r} needs {name!r}, which is in none of the suites")
            if by_name[name] not in ordered:
                add(by_name[name])
        if run not in ordered:
            ordered.append(run)

    for run in by_name.values():
        add(run)
    return ordered
