from __future__ import annotations

import re

import numpy as np
import pytest

from ovbridge.world.captions import EMPTY_SENTENCES, PLACES, SENTENCES, article, captions_of, phrase_of, plural
from ovbridge.world.nouns import NOUNS
from ovbridge.world.scene import BACKGROUND_KINDS, Scene, compose_scene


@pytest.fixture(scope="module")
def captioned() -> list[tuple[Scene, tuple[str, ...]]]:
    pairs = []
    for index in range(150):
        rng = np.random.default_rng([1, 0, index])
        scene = compose_scene(rng)
        pairs.append((scene, captions_of(rng, scene)))
    return pairs


def _named(text: str, *, synonyms: bool = True) -> set[int]:
    """Nouns that a text names, by whole words, singular or plural; the longest name wins ("pizza slice")."""
    words = {
        form: index
        for index, noun in enumerate(NOUNS)
        for name in (noun.name, *(noun.synonyms if synonyms else ()))
        for form in (name, plural(name))
    }
    pattern = "|".join(sorted(map(re.escape, words), key=len, reverse=True))
    # "orange" and the like are colours here, and no noun bears the name of a colour.
    return {words[found] for found in re.findall(rf"\b(?:{pattern})\b", text.lower())}


def test_captions_name_only_what_is_there(captioned):
    for scene, captions in captioned:
        present = {instance.noun_index for instance in scene.instances}
        for caption in captions:
            assert _named(caption) <= present, caption
            assert bool(_named(caption)) == bool(present), caption


def test_captions_omit_some_but_five_together_nearly_all(captioned):
    mentioned, covered, present = 0, 0, 0
    for scene, captions in captioned:
        nouns = {instance.noun_index for instance in scene.instances}
        present += len(nouns)
        mentioned += sum(len(_named(caption)) for caption in captions)
        covered += len(set().union(*map(_named, captions)))
    assert 0.55 < mentioned / (5 * present) < 0.8
    assert covered / present > 0.95


def test_captions_use_synonyms(captioned):
    text = " ".join(caption for _, captions in captioned for caption in captions)
    by_name, by_any = len(_named(text, synonyms=False)), len(_named(text))
    assert by_any >= by_name
    assert re.search(r"\b(automobile|kitten|bike|cup|parasol|burger|spanner)s?\b", text)


def test_five_different_looking_captions_with_good_form(captioned):
    endings = set()
    for _, captions in captioned:
        assert len(captions) == 5
        for caption in captions:
            assert caption[0].isupper()
            assert "  " not in caption
            assert not re.search(r"[{}]|\b[Aa] [aeio]|\b[Aa]n [^aeiou]", caption), caption
            endings.add(caption[-1])
    assert {".", "!"} <= endings
    assert any(character.isalpha() for character in endings)


def test_set_words_name_no_noun():
    for text in (*SENTENCES, *EMPTY_SENTENCES, *(place for places in PLACES.values() for place in places)):
        assert not _named(text), text
    assert set(PLACES) == set(BACKGROUND_KINDS)


def test_phrases_name_their_object_and_its_colour(captioned):
    rng = np.random.default_rng(0)
    for scene, _ in captioned:
        for instance in scene.instances:
            phrase = phrase_of(rng, instance)
            assert _named(phrase) == {instance.noun_index}
            if not instance.is_crowd:
                look = instance.members[0].look
                assert look.colour in phrase.split()
                assert look.texture == "plain" or look.texture in phrase


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("orange mug", "an orange mug"),
        ("mug", "a mug"),
        ("umbrella", "an umbrella"),
        ("ukulele", "a ukulele"),
        ("airplane", "an airplane"),
        ("xylophone", "a xylophone"),
    ],
)
def test_article(words, expected):
    assert article(words) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mug", "mugs"),
        ("knife", "knives"),
        ("wrench", "wrenches"),
        ("axe", "axes"),
        ("bus", "buses"),
        ("butterfly", "butterflies"),
        ("key", "keys"),
        ("wine glass", "wine glasses"),
        ("scissors", "scissors"),
        ("hot air balloon", "hot air balloons"),
        ("teddy bear", "teddy bears"),
        ("dice", "dice"),
    ],
)
def test_plural(name, expected):
    assert plural(name) == expected
