"""What the report says of a run: the command that repeats it, and where it leaves the paper."""

from __future__ import annotations

import shlex
from dataclasses import replace

from ovbridge.config_tree import apply_overrides
from ovbridge.demo import DemoSettings, wording
from ovbridge.recipes import recipe_named
from ovbridge.recipes.world import BEYOND


def test_the_command_names_every_setting_that_differs() -> None:
    settings = DemoSettings(seed=3, image_labels_per_class=7, beyond=False, effort=0.5, overrides=("loop.steps=4",))
    words = shlex.split(wording.command(settings))
    assert words[:4] == ["ovbridge", "demo", "--seed", "3"]
    assert words[words.index("--image-labels") + 1] == "7"
    assert "--as-published" in words
    assert words[words.index("--effort") + 1] == "0.5"
    assert words[-2:] == ["--set", "loop.steps=4"]
    assert "--as-published" not in wording.command(replace(settings, beyond=True))
    # The default of --effort depends on the processor, so the command says it even where it is 1.
    others = wording.command(DemoSettings(clip="my clip.safetensors"))
    assert "--clip 'my clip.safetensors' --effort 1" in others


def test_the_report_says_where_it_goes_beyond_the_paper() -> None:
    said = " ".join(wording.differs(DemoSettings(), "nothing"))
    assert "--as-published" in said
    assert "--as-published" not in " ".join(wording.differs(DemoSettings(beyond=False), "nothing"))
    # A run without the stage has nothing to say of it.
    assert "--as-published" not in " ".join(wording.differs(DemoSettings(stages=("base", "rkd")), "nothing"))


def test_the_recipe_itself_is_as_published() -> None:
    recipe = recipe_named("world", "rkd_pis_wt")
    assert recipe.losses.named_regions is None
    assert recipe.losses.image_label_refine == 0
    assert apply_overrides(recipe, BEYOND).losses.named_regions == 0.9
