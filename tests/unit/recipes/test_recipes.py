from __future__ import annotations

import json

import pytest

from ovbridge.config_tree import apply_overrides, from_json, to_json
from ovbridge.errors import ConfigError
from ovbridge.recipes import RECIPES, recipe_named
from ovbridge.run_config import FREE_FIELDS, RunConfig
from ovbridge.training.optim import learning_rate_at


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_json_and_knows_its_name(name: str) -> None:
    config = RECIPES[name]()
    assert from_json(RunConfig, json.loads(json.dumps(to_json(config)))) == config
    assert config.recipe == name


@pytest.mark.parametrize("family", ["world", "coco", "lvis"])
def test_only_the_last_stage_transfers_weights(family: str) -> None:
    for name, recipe in RECIPES.items():
        if name.startswith(family):
            assert (recipe().detector.projection.transfer is not None) == ("_wt" in name), name


@pytest.mark.parametrize("family", ["coco", "lvis"])
@pytest.mark.parametrize(
    ("suffix", "steps", "decays"), [("", 90_000, (60_000, 80_000)), ("_8x", 720_000, (480_000, 640_000))]
)
def test_official_schedule(family: str, suffix: str, steps: int, decays: tuple[int, int]) -> None:
    config = RECIPES[f"{family}_rkd_pis_wt{suffix}"]()
    assert config.loop.steps == steps
    assert (config.optim.learning_rate, config.optim.momentum, config.optim.weight_decay) == (0.02, 0.9, 1e-4)
    assert (config.optim.warmup_steps, config.optim.warmup_factor) == (1000, 0.001)
    rates = [learning_rate_at(step, steps, config.optim) for step in (decays[0] - 1, decays[0], decays[1])]
    assert rates == pytest.approx([0.02, 0.002, 0.0002])
    # 8 GPUs with 2 boxed or 8 tagged images, drawn 1 : 4, so half of the steps are of either kind.
    assert (config.batches.det, config.batches.cls, config.batches.ratio) == (16, 64, (1.0, 4.0))
    assert (config.batches.cls_transform.short_sides, config.batches.cls_transform.max_long_side) == ((400,), 667)


def test_what_differs_between_coco_and_lvis() -> None:
    coco, lvis = RECIPES["coco_rkd"](), RECIPES["lvis_rkd"]()
    assert (coco.losses.rkd_l1, coco.losses.rkd_relation, coco.losses.image_label) == (15.0, 15.0, 0.1)
    assert (lvis.losses.rkd_l1, lvis.losses.rkd_relation, lvis.losses.image_label) == (25.0, 13.0, 0.1)
    assert (coco.federated_classes, lvis.federated_classes) == (None, 50)
    assert (coco.batches.repeat_threshold, lvis.batches.repeat_threshold) == (None, 0.001)
    assert (coco.data.min_tag_score, lvis.data.min_tag_score) == (0.95, 0.0)
    assert (coco.data.max_tags, lvis.data.max_tags) == (32, 1)
    assert coco.batches.det_transform.short_sides == (800,)
    assert lvis.batches.det_transform.short_sides == (640, 672, 704, 736, 768, 800)
    assert RECIPES["coco_rkd_pis_wt_8x"]().batches.det_transform.short_sides == tuple(range(128, 1281, 32))
    assert RECIPES["lvis_rkd_pis_wt"]().seed == 9112072


def test_names_are_found_in_every_spelling() -> None:
    assert recipe_named("coco-rkd") == recipe_named("coco", "rkd") == RECIPES["coco_rkd"]()


@pytest.mark.parametrize(
    ("name", "stage", "says"),
    [
        ("cocoa_rkd", None, "did you mean coco_rkd"),
        ("world", None, "add --stage"),
        ("world", "rdk", "no stage 'rdk': did you mean rkd"),
        ("world_rdk", None, "no stage 'rdk': did you mean rkd"),
        ("world_rkd", "pis", "--stage goes with"),
    ],
)
def test_unknown_recipe_or_stage_lists_the_known_ones(name: str, stage: str | None, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        recipe_named(name, stage)


def test_projection_must_fit_the_stage() -> None:
    with pytest.raises(ConfigError, match=r"stage\.projection"):
        apply_overrides(RECIPES["world_rkd"](), ["stage.projection=transfer"])


@pytest.mark.parametrize(
    "override",
    [
        "seed=-1", "seed=18446744073709551616", "federated_classes=0", "test_size=0,0", "optim.learning_rate=NaN",
        "optim.learning_rate=Infinity", "optim.clip_norm=-1", "optim.clip_norm=0", "optim.weight_decay=-1",
        "optim.momentum=1", "optim.warmup_factor=-3", "optim.decay_factor=-3", "optim.trunk_factor=-1",
        "optim.warmup_steps=-1", "batches.det=0", "batches.workers=-1", "batches.repeat_threshold=-1",
        "batches.ratio=0,0", "batches.ratio=1,-4", "batches.ratio=1,NaN", "batches.det_transform.short_sides=-5",
        "batches.det_transform.short_sides=", "batches.cls_transform.short_sides=800,0",
        "batches.cls_transform.max_long_side=0", "batches.det_transform.flip_probability=7", "loop.data_timeout=-1",
        "loop.data_timeout=1e30", "loop.profile_steps=-1", "loop.steps=0", "validation.batch=0", "losses.box=NaN",
        "losses.mask=-1", "losses.named_regions=2", "detector.roi.sampled_regions=0", "detector.rpn.post_nms_train=0",
    ],
)  # fmt: skip
def test_a_number_out_of_range_is_named_by_its_path(override: str) -> None:
    path = override.partition("=")[0]
    with pytest.raises(ConfigError, match=rf"^{path}\b.*(must be|at least) ") as caught:
        apply_overrides(RECIPES["world_base"](), [override])
    assert "\n" not in str(caught.value)


def test_nesterov_wants_momentum() -> None:
    overrides = ["optim.optimizer=sgd", "optim.momentum=0", "optim.nesterov=true"]
    with pytest.raises(ConfigError, match=r"set optim\.momentum above 0"):
        apply_overrides(RECIPES["world_base"](), overrides)


def test_free_fields_exist() -> None:
    record = {"version": "0", "config": to_json(RECIPES["world_base"]())}
    for path in FREE_FIELDS:
        node: object = record
        for key in path.split("."):
            assert isinstance(node, dict)
            assert key in node, path
            node = node[key]
