"""The documentation site builds without a warning, and what its pages tell to type runs as it stands."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if path.name != "lab-notes.md")
NOTEBOOKS = sorted((DOCS / "notebooks").glob("*.ipynb"))


def _blocks(page: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "2"}


def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env=_environment(),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "guides/serve/index.html").exists()


def test_every_page_is_in_the_navigation() -> None:
    pages: list[str] = []

    def walk(entry: object) -> None:
        if isinstance(entry, str):
            pages.append(entry)
        for child in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            walk(child)

    settings = (ROOT / "mkdocs.yml").read_text()
    walk(yaml.safe_load(settings)["nav"])
    assert sorted(pages) == sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md"))


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if _blocks(p, "bash")], ids=lambda p: p.stem)
def test_commands_of_a_page_run_in_order(page: Path, tmp_path: Path) -> None:
    script = "set -euo pipefail\n" + "\n".join(_blocks(page, "bash"))
    done = subprocess.run(
        ["bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, env=_environment(), timeout=900
    )
    assert done.returncode == 0, done.stderr[-2000:]
    if page.stem == "index":
        (python,) = _blocks(page, "python")
        subprocess.run([sys.executable, "-c", python], cwd=tmp_path, check=True, env=_environment())


@pytest.mark.slow
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebook_runs_from_top_to_bottom(notebook: Path, tmp_path: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    content = nbformat.read(notebook, as_version=4)
    assert any(cell.cell_type == "code" for cell in content.cells)
    NotebookClient(content, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


def test_two_notebooks_are_there() -> None:
    assert len(NOTEBOOKS) == 2
