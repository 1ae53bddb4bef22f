from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

from ovbridge.config_tree import apply_overrides, first_difference, from_json, leaf_paths, to_json
from ovbridge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class Leaf:
    rate: float = 0.1
    steps: tuple[int, ...] = (1, 2)
    size: tuple[int, int] = (3, 4)
    mode: Literal["a", "b"] = "a"
    clip: float | None = None
    on: bool = False
    where: Path | None = None
    levels: tuple[tuple[int, ...], ...] = ((1,), (2, 3))


@dataclass(frozen=True, kw_only=True)
class Root:
    name: str
    count: int = 1
    leaf: Leaf = field(default_factory=Leaf)


ROOT = Root(name="r", leaf=Leaf(clip=0.5, where=Path("/x/y")))


def test_json_round_trip_restores_every_type() -> None:
    assert from_json(Root, json.loads(json.dumps(to_json(ROOT)))) == ROOT


@pytest.mark.parametrize(
    ("override", "path", "value"),
    [
        ("count=90_000", "count", 90000),
        ("name=3", "name", "3"),
        ("leaf.rate=1", "leaf.rate", 1.0),
        ("leaf.rate=2.5e-3", "leaf.rate", 0.0025),
        ("leaf.steps=5,6,7", "leaf.steps", (5, 6, 7)),
        ("leaf.steps=", "leaf.steps", ()),
        ("leaf.size=[7, 8]", "leaf.size", (7, 8)),
        ("leaf.mode=b", "leaf.mode", "b"),
        ("leaf.clip=none", "leaf.clip", None),
        ("leaf.clip=3", "leaf.clip", 3.0),
        ("leaf.on=yes", "leaf.on", True),
        ("leaf.where=/a/b=c", "leaf.where", Path("/a/b=c")),
        ("leaf.levels=[[4],[5,6]]", "leaf.levels", ((4,), (5, 6))),
    ],
)
def test_overrides_parse_by_annotation(override: str, path: str, value: object) -> None:
    changed = dict(leaf_paths(apply_overrides(ROOT, [override])))
    assert changed[path] == value
    assert type(changed[path]) is type(value)
    assert {k: v for k, v in changed.items() if k != path} == {k: v for k, v in leaf_paths(ROOT) if k != path}


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("leaf.raet=1", "leaf.rate"),
        ("rate=1", "leaf.rate"),
        ("count=many", "whole number"),
        ("count=1.5", "whole number"),
        ("leaf.rate=fast", "a number"),
        ("leaf.mode=c", "a, b"),
        ("leaf.on=maybe", "true or false"),
        ("leaf.size=1", "2 values"),
        ("leaf=1", "object"),
        ("count", "no '='"),
    ],
)
def test_bad_override_names_field_and_remedy(override: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says) as caught:
        apply_overrides(ROOT, [override])
    assert "\n" not in str(caught.value)


def test_unknown_field_in_json_is_named() -> None:
    with pytest.raises(ConfigError, match=r"leaf has no field 'raet': did you mean rate"):
        from_json(Root, {"name": "r", "leaf": {"raet": 1}})


def test_missing_required_field_is_named() -> None:
    with pytest.raises(ConfigError, match="name"):
        from_json(Root, {"count": 2})


def test_first_difference_finds_the_path_and_honours_ignored_ones() -> None:
    other = apply_overrides(ROOT, ["leaf.steps=1,3", "leaf.rate=0.2"])
    left, right = to_json(ROOT), to_json(other)
    assert first_difference(left, right) == "leaf.rate: 0.1, not 0.2"
    assert first_difference(left, right, frozenset({"leaf.rate"})) == "leaf.steps[1]: 2, not 3"
    assert first_difference(left, right, frozenset({"leaf"})) is None
