"""Prompt templates by name, for text banks that average over several."""

from __future__ import annotations

from collections.abc import Sequence

from ovbridge.errors import ConfigError
from ovbridge.vocabulary.text_bank import PAPER_TEMPLATE

SETS = ("paper", "simple-7", "imagenet-80")
"""The paper's single prompt; the seven that OpenAI found to do most; all eighty of its ImageNet evaluation."""


def prompt_templates(given: Sequence[str]) -> tuple[str, ...]:
    """Templates with {} for the name, sets replaced by their members, each once and in order.

    Raises ConfigError for a text that is neither a set nor has a {}, or has other braces.
    """
    templates: list[str] = []
    for text in given:
        if text in SETS:
            templates += _members(text)
        elif text.count("{}") == 1 and not set(fill(text, "")) & {"{", "}"}:
            templates.append(text)
        else:
            raise ConfigError(
                f"--template {text!r} needs one {{}} for the name and no other brace, or is one of {', '.join(SETS)}"
            )
    if not templates:
        raise ConfigError("give at least one --template")
    return tuple(dict.fromkeys(templates))


def fill(template: str, name: str) -> str:
    """The prompt of a name: `template` with the name for {}."""
    return template.replace("{}", name)


def _members(name: str) -> list[str]:
    if name == "paper":
        return [PAPER_TEMPLATE]
    import open_clip

    functions = open_clip.SIMPLE_IMAGENET_TEMPLATES if name == "simple-7" else open_clip.OPENAI_IMAGENET_TEMPLATES
    # open_clip has them as functions of the name; with a full stop at their end, as OpenAI used them.
    return [function("{}") for function in functions]
