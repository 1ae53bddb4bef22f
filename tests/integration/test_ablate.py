"""A tiny ablation in the built-in world: every kind of row runs, the same command goes on, the tables are written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ovbridge.ablate import run as ablate_run
from ovbridge.ablate import sources
from ovbridge.ablate.page import write_tables
from ovbridge.ablate.run import run_suites
from ovbridge.ablate.settings import AblateSettings, WorldSettings
from ovbridge.ablate.suite import Order, Run, Suite
from ovbridge.ablate.suites import BASE
from ovbridge.cli import main
from ovbridge.errors import ConfigError
from ovbridge.structures import Proposals
from ovbridge.teachers.clip import ClipConfig, build_clip, load_clip, save_clip
from ovbridge.teachers.tokenizer import ByteBpeTokenizer

SETTINGS = AblateSettings(
    world=WorldSettings(train_images=6, val_images=4, image_labels_per_class=1),
    overrides=("loop.steps=2", "loop.log_every=1", "batches.det=2", "batches.cls=2"),
)


class GridProposer:
    """Answers every query with the same four boxes of any picture."""

    name, trained_on, digest = "grid", "3 drawn images, roles ['base']", "0"

    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        found = []
        for image, texts in zip(images, queries, strict=True):
            height, width = image.shape[:2]
            quarters = torch.tensor([[x, y, x + 0.5, y + 0.5] for x in (0, 0.5) for y in (0, 0.5)])
            boxes = quarters * torch.tensor([width, height, width, height])
            found.append([Proposals(boxes_xyxy=boxes, scores=torch.tensor([0.9, 0.8, 0.7, 0.6])) for _ in texts])
        return found


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> str:
    config = ClipConfig(
        embed_dim=64, image_size=32, vision_layers=(1, 1, 1, 1), vision_width=8, text_width=32, text_layers=1
    )
    tokenizer = ByteBpeTokenizer.train(["a photo of a red mug", "a kite"], 300)
    path = tmp_path_factory.mktemp("clip") / "clip.safetensors"
    torch.manual_seed(0)
    save_clip(path, build_clip(config, tokenizer.vocab_size), tokenizer, config, "two sentences")
    return str(path)


def test_a_suite_runs_stops_and_goes_on(tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_proposer", lambda *_, **__: GridProposer())
    monkeypatch.setattr(sources, "load_clip", lambda *_: load_clip(clip))
    fused = Run(name="base_fused", title="fused", evaluates="base", fuse=("objectness_novel=0.5",))
    suite = Suite(name="two", title="Two rows", runs=(BASE, fused), orders=(Order(lower="base", higher="base_fused"),))
    monkeypatch.setattr(ablate_run, "suite_named", lambda *_: suite)
    out, evaluate = tmp_path / "ablation", ablate_run._evaluate
    calls: list[str] = []

    def stopped(folder, inputs, run, seed, clock):  # type: ignore[no-untyped-def]
        calls.append(run.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return evaluate(folder, inputs, run, seed, clock)

    monkeypatch.setattr(ablate_run, "_evaluate", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_suites(out, ("two",), (0,), SETTINGS)
    checkpoint = (out / "seed0" / "train" / "base" / "detector.safetensors").read_bytes()
    table = run_suites(out, ("two",), (0,), SETTINGS)["two"]
    assert (out / "seed0" / "train" / "base" / "detector.safetensors").read_bytes() == checkpoint
    assert calls == ["base", "base_fused", "base", "base_fused"]
    # The built-in backbone was taught novel names by label, and says so.
    assert table.verdicts == {"base": "known vocabulary", "base_fused": "known vocabulary"}
    record = json.loads((out / "seed0" / "evaluation" / "base_fused.json").read_text())
    assert record["fuse"] == ["objectness_novel=0.5"]
    assert json.loads((out / "two.json").read_text())["rows"]["base"]["title"] == "supervised base"
    with pytest.raises(ConfigError, match="another ablation"):
        run_suites(out, ("two",), (0,), replace(SETTINGS, overrides=()))


@pytest.mark.slow
def test_suites_run_stop_and_go_on(tmp_path: Path, clip: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "load_proposer", lambda *_, **__: GridProposer())
    monkeypatch.setattr(sources, "load_clip", lambda *_: load_clip(clip))
    out, train_run = tmp_path / "ablation", ablate_run.train_run
    trained: list[str] = []

    def stopped(config, folder, **options):  # type: ignore[no-untyped-def]
        trained.append(folder.name)
        if folder.name == "ils_max_size_mvit" and trained.count(folder.name) == 1:
            raise KeyboardInterrupt
        return train_run(config, folder, **options)

    monkeypatch.setattr(ablate_run, "train_run", stopped)
    names = ("ils", "rkd", "transfer", "strict", "cross", "beyond")
    with pytest.raises(KeyboardInterrupt):
        run_suites(out, names, (0,), SETTINGS)
    tables = run_suites(out, names, (0,), SETTINGS)

    assert trained.count("base") == 1, "a finished training is left alone"
    for name, table in tables.items():
        for row in table.suite.runs:
            assert {"base", "novel", "all"} >= set(table.rows[row.name]), (name, row.name)
            assert (out / "seed0" / "evaluation" / f"{row.name}.json").is_file()
        assert all(result.holds != "holds" for result in table.orders), "one seed proves nothing"
    verdicts = tables["strict"].verdicts
    assert set(verdicts.values()) == {"known vocabulary"}, "by the backbone that all start from"
    audits = {n: json.loads((out / "seed0" / "evaluation" / f"{n}.json").read_text())["leaks"] for n in verdicts}
    assert all(line.startswith("backbone:") for n in ("base", "strict_wt") for line in audits[n]["stated"])
    assert any(line.startswith("tags:") for line in audits["rkd_pis_wt"]["stated"])
    largest = json.loads((out / "labels_largest" / "tags.json").read_text())
    assert largest["proposer"] == "largest box of grid"
    second = json.loads((out / "second_world" / "second_val.json").read_text())
    first = json.loads((out / "world" / "annotations" / "instances_val2017.json").read_text())
    assert [c["name"] for c in second["categories"]] != [c["name"] for c in first["categories"]]
    config = json.loads((out / "seed0" / "train" / "wt_3_layers" / "config.json").read_text())["config"]
    assert config["detector"]["projection"]["transfer"]["layers"] == 3
    files = write_tables(out, tables)
    assert "</html>" in files[-1].read_text()
    assert "max-score on RPN" in (out / "ils.md").read_text()


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(["ablate", "--list"]) == 0
    assert "rkd_rpn_l1: RPN top 5, L1" in capsys.readouterr().out
    assert main.run(["ablate", "--out", str(tmp_path)]) == 2
    assert "give --out and at least one suite" in capsys.readouterr().err
    assert main.run(["ablate", "nonsense", "--out", str(tmp_path / "x")]) == 2
    assert "there is no suite 'nonsense'" in capsys.readouterr().err
    for mixed in (["quick", "rkd"], ["quick", "--rows", "rkd"]):
        assert main.run(["ablate", *mixed, "--out", str(tmp_path / "x")]) == 2
        assert "quick is a choice of suites and rows" in capsys.readouterr().err
    assert main.run(["ablate", "components", "--family", "coco", "--out", str(tmp_path / "x")]) == 2
    assert "need --data and --store" in capsys.readouterr().err
