from __future__ import annotations

import json
from pathlib import Path

import pytest

from ovbridge.demo.clock import StepClock
from ovbridge.demo.settings import SETTINGS_FILE, DemoSettings, claim_folder, with_prerequisites
from ovbridge.errors import ConfigError


def test_stages_come_after_those_they_start_from() -> None:
    assert with_prerequisites(["rkd_pis_wt"]) == ("base", "rkd", "rkd_pis_wt")
    assert with_prerequisites(["pis", "rkd"]) == ("base", "rkd", "pis")
    assert with_prerequisites(["base", "rkd", "rkd_pis_wt"]) == ("base", "rkd", "rkd_pis_wt")


def test_the_fullest_stage_is_last_in_whatever_order_they_are_named() -> None:
    assert with_prerequisites(["rkd_pis_wt", "pis"])[-1] == "rkd_pis_wt"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"train_images": -1}, "--train-images is -1: give at least 1"),
        ({"val_images": 0}, "--val-images is 0"),
        ({"seed": -1}, "--seed is -1"),
        ({"image_labels_per_class": 0}, "--image-labels is 0, but stage rkd_pis_wt"),
    ],
)
def test_numbers_that_cannot_run_are_refused_before_a_folder_is_claimed(settings: dict[str, int], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DemoSettings(**settings)  # type: ignore[arg-type]
    assert DemoSettings(stages=("rkd",), image_labels_per_class=0).stages == ("rkd",)


@pytest.mark.parametrize(("stages", "message"), [(["rkdd"], "'rkdd'.*rkd"), ([], "no stage given")])
def test_unknown_stages(stages: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_prerequisites(stages)


def test_folder_is_claimed_once_and_only_for_the_same_run(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    claim_folder(out, DemoSettings(seed=1))
    before = (out / SETTINGS_FILE).read_bytes()
    (out / "world").mkdir()
    claim_folder(out, DemoSettings(seed=1))
    with pytest.raises(ConfigError, match=r"another demo run.*seed: 2, not 1"):
        claim_folder(out, DemoSettings(seed=2))
    assert (out / SETTINGS_FILE).read_bytes() == before


def test_foreign_folders_are_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match=r"thesis\.tex"):
        claim_folder(tmp_path, DemoSettings())
    with pytest.raises(ConfigError, match="is a file"):
        claim_folder(tmp_path / "thesis.tex", DemoSettings())
    (tmp_path / SETTINGS_FILE).write_text("{ not json")
    with pytest.raises(ConfigError, match="not the record of a demo run"):
        claim_folder(tmp_path, DemoSettings())
    assert sorted(p.name for p in tmp_path.iterdir()) == [SETTINGS_FILE, "thesis.tex"]


def test_clock_adds_up_cut_steps_and_keeps_finished_ones(tmp_path: Path) -> None:
    path = tmp_path / "steps.json"
    clock = StepClock(path)
    with clock.step("world"):
        pass
    with pytest.raises(KeyboardInterrupt), clock.step("train"):
        raise KeyboardInterrupt
    saved = json.loads(path.read_text())
    assert saved["world"]["done"]
    assert not saved["train"]["done"]
    saved["train"]["seconds"] = 10.0
    saved["world"]["seconds"] = 5.0
    path.write_text(json.dumps(saved))
    again = StepClock(path)
    with again.step("world"):
        pass
    with again.step("train"):
        pass
    assert again.seconds["world"] == 5.0
    assert again.seconds["train"] > 10.0
    assert json.loads(path.read_text())["train"]["done"]


@pytest.mark.parametrize("effort", [0.0, -1.0, 1000.0, float("nan")])
def test_an_effort_out_of_range_is_refused(effort: float) -> None:
    with pytest.raises(ConfigError, match="effort"):
        DemoSettings(effort=effort)
