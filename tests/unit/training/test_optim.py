from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from ovbridge.errors import ConfigError
from ovbridge.training.optim import OptimConfig, build_optimizer, gradient_norm, learning_rate_at, set_learning_rate

OFFICIAL = OptimConfig()


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 0.02 * 0.001),
        (500, 0.02 * 0.5005),
        (1000, 0.02),
        (59_999, 0.02),
        (60_000, 0.002),
        (79_999, 0.002),
        (80_000, 0.0002),
    ],
)
def test_official_schedule(step: int, expected: float) -> None:
    assert learning_rate_at(step, 90_000, OFFICIAL) == pytest.approx(expected, rel=1e-9)


def test_eight_times_schedule_decays_at_480k_and_640k() -> None:
    rates = [learning_rate_at(step, 720_000, OFFICIAL) for step in (479_999, 480_000, 639_999, 640_000)]
    assert rates == pytest.approx([0.02, 0.002, 0.002, 0.0002])


def test_cosine_schedule() -> None:
    config = OptimConfig(learning_rate=1.0, schedule="cosine", warmup_steps=0, final_fraction=0.1)
    rates = [learning_rate_at(step, 100, config) for step in (0, 50, 100)]
    assert rates == pytest.approx([1.0, 0.55, 0.1])


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ConfigError, match="decay_at"):
        OptimConfig(decay_at=(60_000.0,))
    with pytest.raises(ConfigError, match="learning_rate"):
        OptimConfig(learning_rate=0.0)


def test_one_step_by_hand() -> None:
    model = nn.Linear(1, 1, bias=True)
    nn.init.constant_(model.weight, 2.0)
    nn.init.constant_(model.bias, 1.0)
    config = OptimConfig(learning_rate=0.1, weight_decay=0.5, decay_norms_and_biases=False)
    optimizer = build_optimizer(model, config)
    model(torch.tensor([[3.0]])).sum().backward()
    optimizer.step()
    # weight: 2 - 0.1 (3 + 0.5 * 2) = 1.6; the bias is not decayed: 1 - 0.1 * 1 = 0.9
    assert model.weight.item() == pytest.approx(1.6)
    assert model.bias.item() == pytest.approx(0.9)


def test_zero_filled_gradients_keep_momentum_moving_parameters() -> None:
    """A parameter that a batch does not reach goes on by momentum, as under torch 1.10's zero_grad."""
    moved = {}
    for keep in (True, False):
        model = nn.Linear(1, 1, bias=False)
        nn.init.constant_(model.weight, 1.0)
        optimizer = build_optimizer(model, replace(OFFICIAL, learning_rate=0.1, weight_decay=0.0))
        model(torch.ones(1, 1)).sum().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=not keep)
        optimizer.step()
        moved[keep] = model.weight.item()
    # 1 - 0.1 = 0.9, then - 0.1 * 0.9 (momentum of the last gradient) = 0.81
    assert moved == {True: pytest.approx(0.81), False: pytest.approx(0.9)}


def test_gradient_is_clipped_to_the_norm() -> None:
    model = nn.Linear(2, 1, bias=False)
    model.weight.grad = torch.tensor([[3.0, 4.0]])
    assert gradient_norm(model, None).item() == pytest.approx(5.0)
    assert gradient_norm(model, 1.0).item() == pytest.approx(5.0)
    assert model.weight.grad.tolist()[0] == pytest.approx([0.6, 0.8], rel=1e-5)


def test_everything_frozen_is_refused() -> None:
    model = nn.Linear(1, 1).requires_grad_(False)
    with pytest.raises(ConfigError, match="frozen"):
        build_optimizer(model, OFFICIAL)


def test_fused_sgd_steps_where_a_first_batch_reached_only_some_parameters() -> None:
    model = torch.nn.ModuleList([torch.nn.Linear(1, 1, bias=False) for _ in range(2)])
    optimizer = build_optimizer(model, OptimConfig(momentum=0.5, weight_decay=0.0, learning_rate=1.0))
    first, second = model.parameters()
    start = second.item()
    first.grad = torch.ones(1, 1)
    optimizer.step()
    assert second.item() == start
    second.grad = torch.ones(1, 1)
    optimizer.step()
    optimizer.step()
    assert second.item() == pytest.approx(start - 1 - 1.5)  # 1, then 1 + 0.5 * 1


def test_the_trunk_learns_at_its_own_rate() -> None:
    model = nn.ModuleDict({"backbone": nn.Linear(1, 1), "rpn": nn.Linear(1, 1)})
    config = OptimConfig(optimizer="adamw", trunk_factor=0.1, weight_decay=0.5, decay_norms_and_biases=False)
    optimizer = build_optimizer(model, config)
    set_learning_rate(optimizer, 0.2)
    rates = {p: (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert rates[model["rpn"].weight] == (0.2, 0.5)
    assert rates[model["rpn"].bias] == (0.2, 0.0)
    assert rates[model["backbone"].weight] == (pytest.approx(0.02), 0.5)
    assert rates[model["backbone"].bias] == (pytest.approx(0.02), 0.0)
