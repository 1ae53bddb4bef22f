"""The tables of an ablation as files: Markdown, JSON, and one HTML page that needs nothing beside it."""

from __future__ import annotations

import html
import json
from collections.abc import Mapping
from pathlib import Path

from ovbridge.ablate.table import SuiteResult, html_table, markdown
from ovbridge.label_store.lock import locked

_STYLE = """
:root { color-scheme: light dark; --paper: #fbfaf8; --ink: #1c1b22; --muted: #6b6875; --rule: #e4e1da;
  --base: #7c3aed; --novel: #059669; --good: #059669; --bad: #b91c1c; --series-1: #94a3b8; --series-2: #d97706;
  --series-3: #0f766e; --series-4: #be185d; --series-5: #1d4ed8; }
@media (prefers-color-scheme: dark) { :root { --paper: #131318; --ink: #ece9f1; --muted: #a19eac; --rule: #33323c;
  --base: #a78bfa; --novel: #34d399; --good: #34d399; --bad: #f87171; } }
body { margin: 0 auto; max-width: 72rem; padding: 2rem clamp(1rem, 4vw, 2.5rem); background: var(--paper);
  color: var(--ink); font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Arial, sans-serif; }
h1, h2 { font-weight: 600; line-height: 1.15; } section { margin-top: 2.4rem; border-top: 1px solid var(--rule); }
p { color: var(--muted); max-width: 46rem; } .scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: .45rem .8rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; } th { color: var(--muted); font-weight: 500; }
td small { display: block; color: var(--muted); } .paper { color: var(--muted); }
td.novel, td.r { color: var(--novel); } td.base { color: var(--base); }
li.holds { color: var(--good); } li.does-not-hold { color: var(--bad); }
figure { margin: 1rem 0; } figure svg { width: 100%; height: auto; } figcaption { color: var(--muted); }
"""


def write_tables(out: Path, results: Mapping[str, SuiteResult], figures: Mapping[str, str] | None = None) -> list[Path]:
    """Write SUITE.json and SUITE.md for each table and one ablation.html; returns the files.

    `figures`: caption → inline SVG, shown below the tables.
    """
    with locked(out / "tables.lock"):
        return _write_all(out, results, figures)


def _write_all(out: Path, results: Mapping[str, SuiteResult], figures: Mapping[str, str] | None) -> list[Path]:
    files = []
    for name, result in results.items():
        for suffix, text in ((".json", json.dumps(result.to_json(), indent=1) + "\n"), (".md", markdown(result))):
            files.append(_write(out / f"{name}{suffix}", text))
    shown = "".join(
        f"<figure>{svg}<figcaption>{html.escape(caption)}</figcaption></figure>"
        for caption, svg in (figures or {}).items()
    )
    gallery = f"<section><h2>Figures</h2>{shown}</section>" if shown else ""
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><title>Ablation</title>'
        f"<style>{_STYLE}</style></head><body><h1>Ablation</h1>"
        "<p>Our numbers beside the paper’s on its own data. In the built-in world compare the pattern, not the "
        "figures. v1 had a proposer that had seen the novel names, final had not.</p>"
        f"{''.join(html_table(r) for r in results.values())}{gallery}</body></html>\n"
    )
    return [*files, _write(out / "ablation.html", page)]


def _write(path: Path, text: str) -> Path:
    aside = path.with_name(path.name + ".part")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)
    return path
