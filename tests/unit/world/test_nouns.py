"""The noun table and its drawings: what the files and a classifier rely on."""

import itertools
from collections import Counter

import numpy as np
import pytest
from PIL import Image, ImageDraw

from ovbridge.world.nouns import COLOURS, NOUNS, Noun
from ovbridge.world.outlines.shapes import Outline, band, bounds, box, circle, fit, mirror, paint, ring, symmetric

GRID = 96
TONE_GREY = {
    "main": 120, "accent": 200, "dark": 70, "light": 180, "white": 255, "black": 20, "glass": 225,
    "wood": 100, "metal": 160, "skin": 210, "green": 90,
}  # fmt: skip


def area(outline: Outline) -> float:
    return 0.5 * abs(
        sum(x0 * y1 - x1 * y0 for (x0, y0), (x1, y1) in zip(outline, outline[1:] + outline[:1], strict=True))
    )


def rasterise(noun: Noun) -> np.ndarray:
    """[GRID, GRID] grey levels, 0 where nothing is drawn."""
    picture = Image.new("L", (GRID, GRID))
    pen = ImageDraw.Draw(picture)
    for part in noun.parts:
        pen.polygon(
            [((x + 1) / 2 * (GRID - 1), (y + 1) / 2 * (GRID - 1)) for x, y in part.outline], fill=TONE_GREY[part.tone]
        )
    return np.asarray(picture)


def words(phrase: str) -> list[str]:
    return phrase.split()


def stands_inside(inner: str, outer: str) -> bool:
    """Whether the words of `inner` occur in a row in `outer`."""
    return f" {inner} " in f" {outer} "


def test_eighty_nouns_split_as_coco():
    assert len(NOUNS) == 80
    assert Counter(noun.role for noun in NOUNS) == {"base": 48, "novel": 17, "unused": 15}


def test_roles_are_interleaved_and_every_family_has_each():
    assert "novel" in {noun.role for noun in NOUNS[:5]}
    assert "novel" in {noun.role for noun in NOUNS[-10:]}
    runs = [len(list(group)) for _, group in itertools.groupby(noun.role for noun in NOUNS)]
    assert max(runs) <= 4
    for family in {noun.supercategory for noun in NOUNS}:
        roles = {noun.role for noun in NOUNS if noun.supercategory == family}
        assert roles == {"base", "novel", "unused"}, family


def test_no_phrase_of_one_noun_stands_in_a_phrase_of_another():
    phrases = {noun.name: (noun.name, *noun.synonyms) for noun in NOUNS}
    assert len(phrases) == 80
    for one, other in itertools.permutations(NOUNS, 2):
        for inner, outer in itertools.product(phrases[one.name], phrases[other.name]):
            assert not stands_inside(inner, outer), (inner, outer)


def test_names_are_plain_and_no_colour_word():
    for noun in NOUNS:
        assert len(noun.synonyms) <= 3
        for phrase in (noun.name, *noun.synonyms):
            assert phrase == phrase.lower().strip()
            assert not set(words(phrase)) & set(COLOURS), phrase


def test_palettes_name_known_colours():
    for noun in NOUNS:
        assert 2 <= len(noun.palette) <= 5, noun.name
        assert len(set(noun.palette)) == len(noun.palette)
        assert set(noun.palette) <= set(COLOURS), noun.name


def test_colours_are_well_apart():
    for (one, a), (other, b) in itertools.combinations(COLOURS.items(), 2):
        assert np.linalg.norm(np.subtract(a, b)) > 50, (one, other)


@pytest.mark.parametrize("noun", NOUNS, ids=lambda noun: noun.name)
def test_drawing_is_sound(noun: Noun):
    assert 3 <= len(noun.parts) <= 16
    for part in noun.parts:
        assert 3 <= len(part.outline) <= 60
        assert area(part.outline) > 1e-3
    x0, y0, x1, y1 = bounds(noun.parts)
    assert max(x1 - x0, y1 - y0) == pytest.approx(2, abs=1e-3)
    assert min(x0, y0) >= -1
    assert max(x1, y1) <= 1
    assert noun.aspect == pytest.approx((x1 - x0) / (y1 - y0), abs=1e-3)


def test_main_colour_shows():
    for noun in NOUNS:
        grey = rasterise(noun)
        own = np.isin(grey, [TONE_GREY[tone] for tone in ("main", "dark", "light")])
        assert own.sum() > 0.1 * (grey > 0).sum(), noun.name


def test_no_two_nouns_look_alike():
    pictures = [rasterise(noun) for noun in NOUNS]
    for (i, one), (j, other) in itertools.combinations(enumerate(pictures), 2):
        union = (one > 0) | (other > 0)
        overlap = ((one > 0) & (other > 0)).sum() / union.sum()
        unlike = (np.abs(one.astype(int) - other) > 25)[union].mean()
        assert overlap < 0.9 or unlike > 0.3, (NOUNS[i].name, NOUNS[j].name, overlap, unlike)


def test_shapes_have_the_area_they_should():
    assert area(box(0, 0, 2, 1)) == pytest.approx(2)
    assert area(box(0, 0, 2, 1, 0.25)) == pytest.approx(2 - (4 - np.pi) * 0.25**2, abs=5e-3)
    assert area(circle(3, 4, 1)) == pytest.approx(np.pi, rel=0.02)
    assert area(ring(0, 0, 2, 1)) == pytest.approx(3 * np.pi, rel=0.02)
    assert area(band(((0, 0), (2, 0)), 0.5)) == pytest.approx(1)
    assert area(band(((0, 0), (2, 0)), 1.0, 0.0)) == pytest.approx(1)
    assert area(symmetric((0, -1), (1, 0), (0, 1))) == pytest.approx(2)


def test_mirror_keeps_the_winding():
    outline = ((0.0, 0.0), (1.0, 0.0), (1.0, 1.0))
    assert mirror(outline) == ((-1.0, 1.0), (-1.0, 0.0), (0.0, 0.0))


def test_fit_centres_and_scales_the_longer_side():
    assert fit(paint("main", box(10, 10, 14, 12)))[0].outline == ((-1, -0.5), (1, -0.5), (1, 0.5), (-1, 0.5))
