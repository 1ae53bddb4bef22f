import pytest

from ovbridge.data.caption_tags import make_tagger, plain_phrase, singulars

NAMES = ["dog", "hot dog", "bear", "teddy bear", "bus", "person", "skateboard", "knife", "glasses", "tie"]
SYNONYMS = {"person": ["person", "man", "woman"], "tie": ["necktie", "tie_(necktie)"], "hot dog": ["sausage"]}


def _tags(captions, rule):
    tag = make_tagger(NAMES, SYNONYMS, rule)
    return [NAMES[k] for k in tag(captions)]


def test_lvis_spelling_becomes_a_phrase():
    assert plain_phrase("tie_(necktie)") == "tie"
    assert plain_phrase("Hair_Dryer") == "hair dryer"


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A dog.", ["dog"]),
        ("two dogs and two buses", ["dog", "bus"]),
        ("a hot dog with mustard", ["hot dog"]),
        ("hotdogs!", ["hot dog"]),
        ("hot-dogs for a dog", ["dog", "hot dog"]),
        ("a teddy bear", ["teddy bear"]),
        ("a bear, a teddy bear", ["bear", "teddy bear"]),
        ("three men on a skate board", ["person", "skateboard"]),
        ("people with knives", ["person", "knife"]),
        ("a pair of glasses", ["glasses"]),
        ("a doghouse in Busan", []),
        ("", []),
    ],
)
def test_word_rule(caption, expected):
    assert _tags([caption], "words") == expected


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a 猫 sits", ["猫"]),
        ("一只猫坐着，一匹斑马", ["猫", "斑马"]),
        ("Кошка сидит", ["кошка"]),
        ("BÄR", ["bär"]),
        ("two ba\u0308rs", ["bär"]),
        ("a b r sound", []),
        ("Ｍouse™", ["mouse"]),
    ],
)
def test_word_rule_in_any_script(caption, expected):
    names = ["猫", "马", "斑马", "кошка", "bär", "mouse"]
    assert [names[k] for k in make_tagger(names, {}, "words")([caption])] == expected


@pytest.mark.parametrize(
    ("captions", "expected"),
    [
        (["A dog."], []),
        (["a dog", "a dog."], ["dog"]),
        (["a hot dog here"], ["dog"]),
        (["two dogs"], []),
        (["Man with necktie"], ["person", "tie"]),
    ],
)
def test_paper_rule_matches_substrings_between_spaces(captions, expected):
    assert _tags(captions, "paper") == expected


def test_captions_do_not_run_into_each_other():
    assert _tags(["something hot", "dog"], "words") == ["dog"]


@pytest.mark.parametrize(
    ("plural", "singular"), [("cherries", "cherry"), ("boxes", "box"), ("benches", "bench"), ("cats", "cat")]
)
def test_the_likeliest_singular_comes_first(plural, singular):
    assert singulars(plural)[0] == singular


@pytest.mark.parametrize("word", ["glass", "as", "cat"])
def test_words_that_are_no_plural(word):
    assert singulars(word) == []
