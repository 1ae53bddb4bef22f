from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovbridge.errors import ConfigError
from ovbridge.training.run_folder import claimed_run

RECORD = {"format": 1, "config": {"seed": 0, "loop": {"log_every": 20}}}
FREE = frozenset({"config.loop.log_every"})


def _changed(**changes: int) -> dict[str, object]:
    return {"format": 1, "config": {"seed": 0, "loop": {"log_every": 20}, **changes}}


def test_the_same_run_is_taken_up_again(tmp_path: Path) -> None:
    for _ in range(2):
        with claimed_run(tmp_path / "run", RECORD, may_differ=FREE) as folder:
            assert json.loads((folder / "config.json").read_text()) == RECORD


def test_settings_that_change_nothing_may_change(tmp_path: Path) -> None:
    with claimed_run(tmp_path, RECORD, may_differ=FREE):
        pass
    other = {"format": 1, "config": {"seed": 0, "loop": {"log_every": 5}}}
    with claimed_run(tmp_path, other, may_differ=FREE):
        pass


def test_another_run_is_refused_and_nothing_overwritten(tmp_path: Path) -> None:
    with claimed_run(tmp_path, RECORD, may_differ=FREE):
        pass
    with (
        pytest.raises(ConfigError, match=r"another run.*config\.seed: 1, not 0"),
        claimed_run(tmp_path, _changed(seed=1), may_differ=FREE),
    ):
        pass
    assert json.loads((tmp_path / "config.json").read_text()) == RECORD


def test_foreign_files_are_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match=r"thesis\.tex"), claimed_run(tmp_path, RECORD, may_differ=FREE):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("text", ["{", "[]", '{"seed": 1}'])
def test_foreign_config_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ConfigError, match="not the record"), claimed_run(tmp_path, RECORD, may_differ=FREE):
        pass
    assert (tmp_path / "config.json").read_text() == text


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("x")
    with pytest.raises(ConfigError, match="is a file"), claimed_run(tmp_path / "run", RECORD, may_differ=FREE):
        pass


def test_two_processes_cannot_share_a_run(tmp_path: Path) -> None:
    with (
        claimed_run(tmp_path, RECORD, may_differ=FREE),
        pytest.raises(ConfigError, match="in use"),
        claimed_run(tmp_path, RECORD, may_differ=FREE),
    ):
        pass
