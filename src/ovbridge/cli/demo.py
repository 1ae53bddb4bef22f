"""`ovbridge demo`: the whole pipeline in the built-in world."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ovbridge.cli.arguments import call

EXAMPLES = """
ovbridge demo
ovbridge demo --out runs/all --stages base,rkd,pis,rkd_pis,rkd_pis_wt
ovbridge demo --out runs/seed1 --seed 1 --proposer builtin-full --json
"""

WITHOUT_BF16 = 0.6
"""Share of the steps that a processor without bf16 trains: a step takes it about twice as long."""


def run(argv: Sequence[str]) -> None:
    """Parse `argv` and run the demo."""
    call(demo, argv, verb="demo", examples=EXAMPLES)


def demo(
    *,
    out: Path = Path("runs/demo"),
    seed: int = 0,
    stages: str = "base,rkd,rkd_pis_wt",
    train_images: int = 1200,
    val_images: int = 300,
    image_labels: int = 40,
    as_published: bool = False,
    effort: float | None = None,
    proposer: str = "builtin",
    clip: str = "builtin",
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="A.B=C ...")] = (),
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Build the world, label it, train and evaluate the stages, write report.html; repeat it to go on after a stop.

    Args:
        out: folder of the run.
        seed: of the world, the weights and the order of the data.
        stages: of base, rkd, pis, rkd_pis, rkd_pis_wt; those that they start from are added.
        train_images: scenes to train on.
        val_images: scenes to evaluate on.
        image_labels: pictures with one label, for each base and novel class.
        as_published: the last stage without what the demo adds to the paper.
        effort: share of the usual training steps; by default all of them where the processor or a GPU computes bf16,
            0.6 elsewhere, which takes about as long.
        proposer: builtin (never saw a novel name), builtin-full, or a weights file.
        clip: builtin, or a weights file.
        set: settings of every stage's recipe to change, such as loop.steps=100.
        as_json: print the results as JSON.
    """
    from ovbridge.demo import DemoSettings, run_demo

    settings = DemoSettings(
        seed=seed,
        stages=tuple(name.strip() for name in stages.split(",") if name.strip()),
        train_images=train_images,
        val_images=val_images,
        image_labels_per_class=image_labels,
        proposer=proposer,
        clip=clip,
        beyond=not as_published,
        effort=_effort() if effort is None else effort,
        overrides=set,
    )
    results = run_demo(out, settings)
    if as_json:
        print(json.dumps(results))
    else:
        _print_table(results)


def _effort() -> float:
    from ovbridge.device import bf16_pays, default_device

    return 1.0 if bf16_pays(default_device()) else WITHOUT_BF16


def _print_table(results: dict[str, Any]) -> None:
    from rich.table import Table

    from ovbridge.console import stdout
    from ovbridge.report.curves import minutes
    from ovbridge.report.paper import FINAL, FIRST_VERSION, stage_title

    paper = FIRST_VERSION if results["proposer"] == "builtin-full" else FINAL
    table = Table(title="AP50, in percent")
    table.add_column("stage")
    for column in ("base", "novel", "all", "novel/base", "paper: base", "novel", "all"):
        table.add_column(column, justify="right", style="dim" if column.startswith("paper") else "")
    for stage, record in results["stages"].items():
        here = [record["ap50"][group] for group in ("base", "novel", "all")]
        ratio = here[1] / here[0] if here[0] and here[1] is not None else None
        beside = [paper[stage][group] for group in ("base", "novel", "all")] if stage in paper else [None] * 3
        cells = [*(_cell(v, 1) for v in here), _cell(ratio, 2), *(_cell(v, 1) for v in beside)]
        table.add_row(stage_title(stage), *cells)
    stdout.print(table)
    if results["beyond_the_paper"]:
        stdout.print(
            "The last stage goes beyond the paper: its pseudo boxes teach their offsets too, and regions that CLIP "
            "names surely count as boxes. --as-published leaves this out.",
            style="dim",
        )
    stdout.print(f"time        {minutes(results['seconds'])}")
    stdout.print(f"checkpoint  {results['checkpoint']}", soft_wrap=True)
    stdout.print(f"report      {results['report']}", soft_wrap=True)


def _cell(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
