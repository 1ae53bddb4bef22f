"""`ovbridge ablate`: the paper's tables, in the built-in world or at full scale."""

from __future__ import annotations

import json as json_format
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro

from ovbridge.cli.arguments import call
from ovbridge.errors import ConfigError

EXAMPLES = """\
ovbridge ablate --list
ovbridge ablate quick --out runs/ablation
ovbridge ablate components --out runs/ablation --seeds 0 1 2
ovbridge ablate components controls beyond --out runs/ablation --seeds 0 1 2 --figures
ovbridge ablate components --family coco --data coco --store coco/labels --out runs/coco --seeds 0"""


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    call(ablate, argv, verb="ablate", examples=EXAMPLES)


def ablate(
    suites: tyro.conf.Positional[tuple[str, ...]] = (),
    /,
    *,
    out: Path | None = None,
    seeds: tuple[int, ...] = (0, 1, 2),
    rows: Annotated[tuple[str, ...], tyro.conf.arg(metavar="ROW ...")] = (),
    family: Literal["world", "coco", "lvis"] = "world",
    train_images: int = 1200,
    val_images: int = 300,
    image_labels: int = 40,
    world_seed: int = 0,
    proposer: str = "builtin",
    clip: str = "builtin",
    data: Path | None = None,
    store: Path | None = None,
    val_annotations: Path | None = None,
    val_images_folder: Path | None = None,
    second_annotations: Path | None = None,
    second_images: Path | None = None,
    strict_data: Path | None = None,
    strict_store: Path | None = None,
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="A.B=C ...")] = (),
    figures: bool = False,
    list: bool = False,
    json: bool = False,
) -> None:
    """Train and evaluate every row of the paper's tables, for several seeds; repeat the same command to go on.

    Started twice at the same time, the two processes share the rows: on two cores faster than one process with both.

    Args:
        suites: components, rkd, ils, transfer, controls, strict, cross, beyond; or all; or quick: the rows of
            components, rkd, ils and beyond that the paper's orders need, three seeds in about an hour on two cores.
        out: Folder for the runs and tables. More suites and seeds may be added to it later.
        seeds: Of training; the tables show mean and spread over them.
        rows: Only these rows of the suites (see --list) and those that they build on.
        family: Whose recipes: the built-in world's, or at full scale OV-COCO's or OV-LVIS's.
        train_images: Scenes of the built-in world to train on.
        val_images: Scenes to evaluate on.
        image_labels: Pictures with one label for each base and novel class.
        world_seed: Of the pictures.
        proposer: Where labels have to be made: as 'ovbridge label --proposer'.
        clip: As 'ovbridge label --clip'.
        data: Full scale: the folder that the recipe's paths start from.
        store: Full scale: its label store.
        val_annotations: Full scale: what to evaluate on, where it is not the family's own.
        val_images_folder: Its images.
        second_annotations: Full scale, suite cross: another data set.
        second_images: Its images.
        strict_data: Full scale, suite strict: what 'ovbridge prepare strict' wrote.
        strict_store: Its label store.
        set: Settings of every recipe to change, such as loop.steps=100.
        figures: Draw the paper's figures from the first seed too (suite components).
        list: Show every suite with its rows, and run nothing.
        json: Print the tables as JSON.
    """
    from ovbridge.ablate.suites import QUICK_ROWS, QUICK_SUITES, SUITES, suite_named
    from ovbridge.console import stdout

    if list:
        known = {name: suite_named(name, family) for name in SUITES}
        if json:
            titles = {name: {"title": s.title, "rows": {r.name: r.title for r in s.runs}} for name, s in known.items()}
            print(json_format.dumps(titles))
            return
        for name, suite in known.items():
            stdout.print(f"{name}: {suite.title}", soft_wrap=True)
            for row in suite.runs:
                stdout.print(f"  {row.name}: {row.title}", soft_wrap=True)
        return
    if out is None or not suites:
        raise ConfigError(f"give --out and at least one suite: {', '.join(SUITES)}, or all, or quick")
    if figures and family != "world":
        raise ConfigError("--figures draws from runs in the built-in world: leave it out, or --family")
    if figures and proposer.startswith("boxes:"):
        raise ConfigError("--figures asks the proposer about new pictures: stored boxes cannot answer")
    from ovbridge.ablate.page import write_tables
    from ovbridge.ablate.run import run_suites
    from ovbridge.ablate.settings import AblateSettings, WorldSettings
    from ovbridge.ablate.table import markdown

    settings = AblateSettings(
        family=family,
        world=WorldSettings(
            train_images=train_images, val_images=val_images, image_labels_per_class=image_labels, seed=world_seed
        ),
        proposer=proposer,
        clip=clip,
        data=_absolute(data),
        store=_absolute(store),
        val_annotations=_absolute(val_annotations),
        val_images=_absolute(val_images_folder),
        second_annotations=_absolute(second_annotations),
        second_images=_absolute(second_images),
        strict_data=_absolute(strict_data),
        strict_store=_absolute(strict_store),
        overrides=set,
    )
    if "quick" in suites and len(suites) + len(rows) > 1:
        raise ConfigError("quick is a choice of suites and rows: leave the others out, or name suites and --rows")
    if "quick" in suites:
        suites, rows = QUICK_SUITES, QUICK_ROWS
    names = tuple(SUITES) if "all" in suites else suites
    tables = run_suites(out, names, tuple(dict.fromkeys(seeds)), settings, rows=rows)
    pictures = None
    if figures:
        from ovbridge.ablate.figures import draw_figures

        pictures = draw_figures(out, tables, seeds[0], settings)
    files = write_tables(out, tables, pictures)
    if json:
        print(json_format.dumps({name: table.to_json() for name, table in tables.items()}))
        return
    for table in tables.values():
        stdout.print(markdown(table), soft_wrap=True)
    stdout.print(f"written to {files[-1]}", soft_wrap=True)


def _absolute(path: Path | None) -> str:
    return "" if path is None else str(path.absolute())
