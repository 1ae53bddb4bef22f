"""Every command that the README, CONTRIBUTING, a guide or a `--help` shows can be typed as it stands.

The `bash` blocks of the guides run from end to end in test_docs.py; the `console` blocks want data that are not here.
"""

from __future__ import annotations

import importlib
import re
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ovbridge.cli import main
from ovbridge.cli.arguments import bind as arguments_bind

ROOT = Path(__file__).parents[2]
DOCUMENTS = ("README.md", "CONTRIBUTING.md")


def _document_lines() -> list[tuple[str, str]]:
    lines = []
    for document in DOCUMENTS:
        blocks = re.findall(r"^```\n(.*?)^```", (ROOT / document).read_text(), flags=re.DOTALL | re.MULTILINE)
        lines += [(document, line) for block in blocks for line in block.splitlines()]
    for page in sorted((ROOT / "docs").rglob("*.md")):
        blocks = re.findall(r"^```console\n(.*?)^```", page.read_text(), flags=re.DOTALL | re.MULTILINE)
        joined = (block.replace("\\\n", " ") for block in blocks)
        lines += [(page.name, line.removeprefix("$ ")) for block in joined for line in block.splitlines()]
    return lines


def _commands() -> list[str]:
    shown = [line for _, line in _document_lines()]
    for verb in main.VERBS:
        module = importlib.import_module(f"ovbridge.cli.{verb}")
        shown += [
            line.strip()
            for name, text in vars(module).items()
            if name.endswith("EXAMPLES") and isinstance(text, str)
            for line in text.splitlines()
        ]
    found = [re.sub(r"^(\.venv/bin/|[A-Z_]+=\S+ )", "", line.strip()) for line in shown]
    return sorted({line for line in found if line.startswith("ovbridge ")})


@pytest.mark.parametrize("command", _commands())
def test_command_parses(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    words = shlex.split(command, comments=True)[1:]
    bound = []

    def bind_only(*args: Any, **kwargs: Any) -> Callable[[], None]:
        bound.append(arguments_bind(*args, **kwargs))
        return lambda: None

    monkeypatch.setattr("ovbridge.cli.arguments.bind", bind_only)
    if "--help" in words:
        with pytest.raises(SystemExit):
            main.run(words)
        return
    assert main.run(words) == 0
    assert len(bound) == 1


def test_make_targets_exist() -> None:
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE))
    shown = {line.split()[1] for _, line in _document_lines() if line.startswith("make ")}
    assert {"demo", "test"} <= shown <= targets


def test_ci_runs_the_linters_and_the_readme_test_command() -> None:
    script = (ROOT / ".ci/run").read_text().splitlines()
    assert {"make lint", "make test", "set -euo pipefail"} <= set(script)


def test_readme_names_every_verb() -> None:
    readme = (ROOT / "README.md").read_text()
    assert all(f"| `{verb}` |" in readme for verb in main.VERBS)


def test_lock_file_holds_no_address_but_hashes() -> None:
    lock = (ROOT / "requirements.lock").read_text()
    assert not re.search(r"https?://|^--|file:|find-links", lock, flags=re.MULTILINE)
    pins = re.findall(r"^([\w.-]+)==", lock, flags=re.MULTILINE)
    assert len(pins) > 50
    assert lock.count("--hash=sha256:") >= len(pins)
