"""`evaluate --predictions`: nothing is replaced that it did not write, and what the numbers hide is said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ovbridge.cli.main import run

TRUTH = {
    "images": [{"id": 4, "file_name": "a.jpg", "width": 40, "height": 30}],
    "categories": [{"id": 3, "name": "mug"}, {"id": 9, "name": "sign [/b] :kite:"}],
    "annotations": [{"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 10, 20]}],
}
FOUND = [{"image_id": 4, "category_id": 3, "bbox": [1, 2, 10, 20], "score": 0.4}]


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    for name, content in (("truth", TRUTH), ("found", FOUND), ("other", [])):
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    return ["evaluate", "--predictions", str(tmp_path / "found.json"), "--annotations", str(tmp_path / "truth.json")]


def test_results_of_other_detections_stay(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "results.json"
    assert run([*words, "--out", str(out)]) == 0
    assert run([*words, "--out", str(out)]) == 0
    before = json.loads(out.read_text())
    assert before["predictions"] == words[2]
    capsys.readouterr()
    assert run([*words[:2], str(tmp_path / "other.json"), *words[3:], "--out", str(out)]) == 2
    assert "exists and holds something else" in capsys.readouterr().err
    assert json.loads(out.read_text()) == before


@pytest.mark.parametrize(
    ("extra", "named"),
    [
        (["--save-predictions", "truth.json"], "truth.json exists: choose another --save-predictions"),
        (["--save-predictions", "new.json", "--out", "new.json"], "--save-predictions and --out are both"),
    ],
)
def test_detections_replace_no_file(
    words: list[str], extra: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(tmp_path / word) if word.endswith(".json") else word for word in extra]
    detector = ["--checkpoint", str(tmp_path / "none.safetensors"), "--images", str(tmp_path)]
    assert run(["evaluate", *detector, *words[3:], *files]) == 2
    assert named in capsys.readouterr().err
    assert json.loads((tmp_path / "truth.json").read_text()) == TRUTH


def test_saving_needs_a_detector(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run([*words, "--save-predictions", str(tmp_path / "new.json")]) == 2
    assert "it goes with --checkpoint" in capsys.readouterr().err


def test_names_and_paths_are_printed_as_they_are(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "o[/v1]" / "results.json"
    assert run([*words, "--protocol", "coco", "--out", str(out)]) == 0
    printed = capsys.readouterr()
    assert "sign [/b] :kite:" in printed.out
    assert f"written to {out}" in printed.out
    assert printed.err == ""


@pytest.mark.parametrize(
    ("protocol", "note"),
    [("ov-coco", "no class is novel, so ov-coco has no novel mean"), ("strict", "protocol strict is not checked")],
)
def test_what_the_numbers_do_not_say(
    words: list[str], protocol: str, note: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--protocol", protocol, "--json"]) == 0
    printed = capsys.readouterr()
    assert note in printed.err
    record: dict[str, Any] = json.loads(printed.out)
    assert record.get("leaks", {}).get("verdict") == ("not audited" if protocol == "strict" else None)
