"""What people would say about a scene: a phrase for each object, five captions for a picture.

Captions are made from the truth but are no complete account of it: they leave things out and use synonyms, as the
captions of COCO do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ovbridge.world.nouns import NOUNS
from ovbridge.world.scene import BackgroundKind, Instance, Scene

CAPTIONS_AN_IMAGE = 5
MENTION_ODDS = 0.6
"""How often a caption names a noun that is in the picture."""
SYNONYM_ODDS = 0.3

PLACES: dict[BackgroundKind, tuple[str, ...]] = {
    "meadow": ("in a green meadow", "in the meadow", "in front of some hills"),
    "wallpaper": ("in a cosy room", "in front of patterned wallpaper", "in a room"),
    "planks": ("on wooden planks", "on some planks", "on a wooden surface"),
    "tablecloth": ("on a checked tablecloth", "on a tablecloth", "on a picnic cloth"),
    "tiles": ("on a tiled surface", "on the tiles", "in front of some tiles"),
    "lawn": ("on the lawn", "on a green lawn", "in the grass"),
    "water": ("above the water", "in the water", "by the sea"),
    "beach": ("on a sandy beach", "on the beach", "by the sea"),
    "paper": ("on plain paper", "on a pale background", "on a sheet of paper"),
    "evening": ("under an evening sky", "at dusk", "at sunset"),
    "snow": ("in the snow", "on the snow", "in fresh snow"),
}

SENTENCES = (
    "{Things} {place}.",
    "{Things} {place}",
    "{Things} lying {place}.",
    "{Place} {verb} {things}.",
    "There {verb} {things} {place}.",
    "There {verb} {things}.",
    "You can see {things} {place}.",
    "A picture of {things}.",
    "A picture of {things} {place}.",
    "A colourful drawing with {things}",
    "Somebody left {things} {place}.",
    "Look, {things}!",
    "Here {verb} {things}, {place}.",
    "{Things}, seen {place}.",
)
EMPTY_SENTENCES = (
    "Nothing at all {place}.",
    "There is nothing to see {place}.",
    "An empty scene.",
    "A quiet spot with nobody around.",
    "Not a thing can be seen {place}.",
    "A calm and empty view.",
)

COUNT_WORDS = ("no", "one", "two", "three", "four", "five", "six", "seven")
UNITS = {
    "scissors": "pair",
    "shears": "pair",
    "sunglasses": "pair",
    "shades": "pair",
    "jeans": "pair",
    "trousers": "pair",
    "pants": "pair",
    "grapes": "bunch",
}
"""What one counts of nouns that have no singular: "a pair of scissors", "two bunches of grapes"."""
IRREGULAR_PLURALS = {
    "bookshelf": "bookshelves",
    "cactus": "cacti",
    "dice": "dice",
    "fish": "fish",
    "knife": "knives",
    "leaf": "leaves",
    "snowman": "snowmen",
    "squid": "squid",
}
LIKE_A_CONSONANT = ("uni", "use", "uku", "eu", "one")
"""Words that begin with a vowel in writing but not in speech begin like this."""


@dataclass(frozen=True, kw_only=True)
class Group:
    """The things of one noun in a picture."""

    instances: tuple[Instance, ...]
    """At least one."""


def article(words: str) -> str:
    """The words with "a" or "an" before them."""
    start = words.lower()
    vowel = start[0] in "aeiou" and not start.startswith(LIKE_A_CONSONANT)
    return f"an {words}" if vowel else f"a {words}"


def plural(name: str) -> str:
    """The plural of a name."""
    *before, last = name.split(" ")
    if last in IRREGULAR_PLURALS:
        last = IRREGULAR_PLURALS[last]
    elif last in UNITS:
        pass
    elif last.endswith(("s", "x", "z", "ch", "sh")):
        last += "es"
    elif last.endswith("y") and last[-2] not in "aeiou":
        last = last[:-1] + "ies"
    else:
        last += "s"
    return " ".join([*before, last])


def phrase_of(rng: np.random.Generator, instance: Instance) -> str:
    """What tells one thing from others: "a small red mug", "a striped blue kite"; of a crowd, "many red mugs"."""
    if instance.is_crowd:
        return f"many {plural(_name(rng, instance.noun_index))}"
    return _one(rng, instance, size_odds=0.4, texture_odds=1.0, colour_odds=1.0)


def captions_of(rng: np.random.Generator, scene: Scene) -> tuple[str, ...]:
    """Five captions."""
    groups = _groups(scene.instances)
    places = PLACES[scene.background]
    captions = []
    for _ in range(CAPTIONS_AN_IMAGE):
        place = places[int(rng.integers(len(places)))]
        if groups:
            captions.append(_sentence(rng, _mentioned(rng, groups), place))
        else:
            captions.append(EMPTY_SENTENCES[int(rng.integers(len(EMPTY_SENTENCES)))].format(place=place))
    return tuple(captions)


def _groups(instances: Sequence[Instance]) -> list[Group]:
    by_noun: dict[int, list[Instance]] = {}
    for instance in instances:
        by_noun.setdefault(instance.noun_index, []).append(instance)
    return [Group(instances=tuple(members)) for members in by_noun.values()]


def _mentioned(rng: np.random.Generator, groups: Sequence[Group]) -> list[Group]:
    """Some of the groups in any order, at least one."""
    order = rng.permutation(len(groups))
    chosen = [groups[int(index)] for index in order if rng.random() < MENTION_ODDS]
    return chosen or [groups[int(order[0])]]


def _sentence(rng: np.random.Generator, groups: Sequence[Group], place: str) -> str:
    things = _joined([_things(rng, group) for group in groups])
    first = groups[0].instances
    verb = "is" if len(first) == 1 and not first[0].is_crowd else "are"
    sentence = SENTENCES[int(rng.integers(len(SENTENCES)))]
    return sentence.format(
        things=things, Things=_capitalised(things), place=place, Place=_capitalised(place), verb=verb
    )


def _things(rng: np.random.Generator, group: Group) -> str:
    """A group in words: "a red mug", "two mugs", "a crowd of mugs"."""
    if any(instance.is_crowd for instance in group.instances):
        many = ("many", "a lot of", "a group of", "lots of")[int(rng.integers(4))]
        return f"{many} {plural(_name(rng, group.instances[0].noun_index))}"
    if len(group.instances) == 1:
        return _one(rng, group.instances[0], size_odds=0.12, texture_odds=0.25, colour_odds=0.5)
    names = plural(_name(rng, group.instances[0].noun_index))
    colours = {instance.members[0].look.colour for instance in group.instances}
    described = f"{colours.pop()} {names}" if len(colours) == 1 and rng.random() < 0.6 else names
    count = COUNT_WORDS[len(group.instances)] if rng.random() < 0.8 else "some"
    if (unit := UNITS.get(names)) and count != "some":
        return f"{count} {plural(unit)} of {described}"
    return f"{count} {described}"


def _one(
    rng: np.random.Generator, instance: Instance, *, size_odds: float, texture_odds: float, colour_odds: float
) -> str:
    """One thing in words with its article."""
    look, pose = instance.members[0].look, instance.members[0].pose
    words = []
    if (size := _size_word(pose.side)) and rng.random() < size_odds:
        words.append(size)
    if look.texture != "plain" and rng.random() < texture_odds:
        words.append(look.texture)
    if rng.random() < colour_odds:
        words.append(look.colour)
    name = _name(rng, instance.noun_index)
    described = " ".join([*words, name])
    unit = UNITS.get(name)
    return f"a {unit} of {described}" if unit else article(described)


def _size_word(side: float) -> str:
    if side < 24:
        return "tiny"
    if side < 48:
        return "small"
    return "large" if side > 105 else ""


def _name(rng: np.random.Generator, noun_index: int) -> str:
    """The noun's name, now and then one of its synonyms."""
    noun = NOUNS[noun_index]
    if noun.synonyms and rng.random() < SYNONYM_ODDS:
        return noun.synonyms[int(rng.integers(len(noun.synonyms)))]
    return noun.name


def _joined(parts: Sequence[str]) -> str:
    if len(parts) == 1:
        return parts[0]
    return ", ".join(parts[:-1]) + " and " + parts[-1]


def _capitalised(text: str) -> str:
    return text[0].upper() + text[1:]
