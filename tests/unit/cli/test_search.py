"""Mistakes in a search are named before the store is opened."""

from __future__ import annotations

import pytest

from ovbridge.cli.main import run


@pytest.mark.parametrize(
    ("words", "remedy"),
    [(("--top", "0"), "--top is 0: give at least 1"), (("--template", "a mug"), "has no place for the query")],
)
def test_mistakes_are_one_line(words: tuple[str, ...], remedy: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["search", "no-such-store", "red mug", *words]) == 2
    assert remedy in capsys.readouterr().err
