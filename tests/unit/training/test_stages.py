from __future__ import annotations

import pytest
import torch
from torch import nn

from ovbridge.errors import ConfigError
from ovbridge.training.stages import STAGES, check_initial_stage, freeze, set_training_mode, stage_named


def test_the_five_stages_start_where_the_released_runs_do() -> None:
    assert {name: stage.init_from for name, stage in STAGES.items()} == {
        "base": "nothing",
        "rkd": "base",
        "pis": "base",
        "rkd_pis": "base",
        "rkd_pis_wt": "rkd",
    }
    assert [name for name, stage in STAGES.items() if stage.region_distillation] == ["rkd", "rkd_pis", "rkd_pis_wt"]
    assert [name for name, stage in STAGES.items() if stage.image_labels] == ["pis", "rkd_pis", "rkd_pis_wt"]
    assert [name for name, stage in STAGES.items() if stage.projection == "transfer"] == ["rkd_pis_wt"]


def test_unknown_stage_lists_the_known_ones() -> None:
    with pytest.raises(
        ConfigError, match=r"'rkd_pis_wtt'.*did you mean rkd_pis_wt.*base, rkd, pis, rkd_pis, rkd_pis_wt"
    ):
        stage_named("rkd_pis_wtt")


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_frozen_tensors_are_bit_identical_after_a_step() -> None:
    model = _model()
    freeze(model, ["0"])
    set_training_mode(model, "frozen")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1, weight_decay=0.1)
    model(torch.randn(5, 3)).square().sum().backward()
    optimizer.step()
    after = model.state_dict()
    moved = {name for name in after if not torch.equal(before[name], after[name])}
    assert moved == {"2.weight", "2.bias"}


def test_training_batch_norm_updates_its_statistics() -> None:
    model = _model()
    set_training_mode(model, "train")
    model(torch.randn(5, 3) + 3)
    assert model[1].num_batches_tracked == 1
    assert model[1].weight.requires_grad


def test_freezing_what_does_not_exist_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'0\.wieght'"):
        freeze(_model(), ["0.wieght"])


def test_freeze_does_not_reach_a_longer_name_with_the_same_beginning() -> None:
    model = nn.ModuleDict({"fc": nn.Linear(1, 1), "fc2": nn.Linear(1, 1)})
    freeze(model, ["fc"])
    assert [name for name, p in model.named_parameters() if p.requires_grad] == ["fc2.weight", "fc2.bias"]


def test_wrong_initial_stage_is_refused() -> None:
    check_initial_stage(STAGES["rkd_pis_wt"], "rkd", "a.safetensors")
    with pytest.raises(ConfigError, match=r"rkd_pis_wt starts from a 'rkd' checkpoint, a\.safetensors is 'base'"):
        check_initial_stage(STAGES["rkd_pis_wt"], "base", "a.safetensors")
