from __future__ import annotations

import pytest

from ovbridge.errors import ConfigError
from ovbridge.teachers.prompts import prompt_templates


def test_sets_and_templates_are_joined_in_order_without_repeats() -> None:
    assert prompt_templates(["a {}", "paper", "a photo of a {}"]) == ("a {}", "a photo of a {}")


@pytest.mark.parametrize(
    ("name", "count", "first"), [("simple-7", 7, "itap of a {}."), ("imagenet-80", 80, "a bad photo of a {}.")]
)
def test_the_published_ensembles(name: str, count: int, first: str) -> None:
    templates = prompt_templates([name])
    assert (len(templates), templates[0]) == (count, first)
    assert all(t.count("{}") == 1 for t in templates)


@pytest.mark.parametrize("given", [["a photo"], ["{} and {}"], ["imagenet-8"], [], ["a {} {0}"], ["{} {"], ["} {}"]])
def test_what_is_no_template_is_refused(given: list[str]) -> None:
    with pytest.raises(ConfigError, match="template"):
        prompt_templates(given)
