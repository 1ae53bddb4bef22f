"""Which classes a caption names: the paper's substring rule, and a rule on words that misses less.

A tagger is a function from the captions of one image to the columns of the classes they name, ascending.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Literal

TagRule = Literal["paper", "words"]
"""paper: substrings between spaces. words: plurals, punctuation, spelling in one or two words, longest match."""

Tagger = Callable[[Sequence[str]], tuple[int, ...]]

_ASCII_WORD = re.compile(r"[a-z0-9]+")
_IDEOGRAPH = re.compile("([\u3400-\u9fff\uf900-\ufaff\U00020000-\U0003ffff])")
_IN_WORDS = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Nd"})
_IRREGULAR = {
    "people": "person",
    "men": "man",
    "women": "woman",
    "children": "child",
    "mice": "mouse",
    "geese": "goose",
    "feet": "foot",
    "teeth": "tooth",
    "oxen": "ox",
    "leaves": "leaf",
    "shelves": "shelf",
    "loaves": "loaf",
    "knives": "knife",
    "wolves": "wolf",
    "calves": "calf",
    "scarves": "scarf",
}


def make_tagger(names: Sequence[str], synonyms: Mapping[str, Sequence[str]], rule: TagRule) -> Tagger:
    """Build the tagger of a rule.

    Args:
        names: Class names in vocabulary order.
        synonyms: Class name → synonyms as LVIS writes them ("necktie", "tie_(necktie)"). A class without any
            goes by its name; under the rule "words" the name always counts too.
        rule: See `TagRule`.
    """
    phrases = [_phrases(name, synonyms.get(name, ()), always_name=rule == "words") for name in names]
    return _paper_tagger(phrases) if rule == "paper" else _word_tagger(phrases)


def plain_phrase(synonym: str) -> str:
    """An LVIS synonym as it stands in a sentence: "tie_(necktie)" → "tie"."""
    return synonym.replace("_", " ").split("(")[0].strip().lower()


def _phrases(name: str, synonyms: Sequence[str], *, always_name: bool) -> list[str]:
    chosen = [*synonyms, name] if always_name or not synonyms else list(synonyms)
    return list(dict.fromkeys(plain_phrase(s) for s in chosen))


def _paper_tagger(phrases: Sequence[Sequence[str]]) -> Tagger:
    """Detic's rule: the captions joined by spaces hold " phrase ", begin with "phrase " or end with " phrase"."""

    def tag(captions: Sequence[str]) -> tuple[int, ...]:
        text = " ".join(captions).lower()
        return tuple(
            column
            for column, options in enumerate(phrases)
            if any(f" {p} " in text or text.startswith(f"{p} ") or text.endswith(f" {p}") for p in options)
        )

    return tag


def _word_tagger(phrases: Sequence[Sequence[str]]) -> Tagger:
    """Left to right, the longest run of words that spells a phrase, its last word in singular or plural.

    Runs are compared without the spaces, so "hotdog" and "hot dog" are one phrase, and "hot dog" is no dog.
    """
    columns: dict[str, list[int]] = {}
    for column, options in enumerate(phrases):
        for phrase in options:
            columns.setdefault("".join(words_of(phrase)), []).append(column)
    longest = max((len(words_of(p)) for options in phrases for p in options), default=1) + 1

    def tag(captions: Sequence[str]) -> tuple[int, ...]:
        found: set[int] = set()
        for caption in captions:
            words = words_of(caption)
            start = 0
            while start < len(words):
                for stop in range(min(len(words), start + longest), start, -1):
                    match = next((columns[k] for k in _spellings(words[start:stop]) if k in columns), None)
                    if match is not None:
                        found.update(match)
                        start = stop - 1
                        break
                start += 1
        return tuple(sorted(found))

    return tag


def words_of(text: str) -> list[str]:
    """The words of a text without capitals: runs of letters, marks and digits of any script.

    Full-width and composed forms are made equal (NFKC). An ideograph is a word of its own, as no spaces part them.
    """
    if text.isascii():
        return _ASCII_WORD.findall(text.lower())
    # Parted before NFKC, which would make letters of signs: "Frisbee™" would become "FrisbeeTM".
    parted = "".join(c if unicodedata.category(c) in _IN_WORDS else " " for c in text)
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", parted).casefold())
    return _IDEOGRAPH.sub(r" \1 ", folded).split()


def _spellings(words: Sequence[str]) -> Iterator[str]:
    """The words run together, as they stand and with the last one in each possible singular."""
    head, last = "".join(words[:-1]), words[-1]
    yield head + last
    for singular in singulars(last):
        yield head + singular


def singulars(word: str) -> list[str]:
    """Words that `word` may be the plural of, likeliest first: "buses" → ["bus", "buse"]."""
    if word in _IRREGULAR:
        return [_IRREGULAR[word]]
    if len(word) < 3 or not word.endswith("s") or word.endswith("ss"):
        return []
    options = [word[:-1]]
    if word.endswith("ies"):
        options.insert(0, word[:-3] + "y")
    elif word.endswith(("ses", "xes", "zes", "ches", "shes", "oes")):
        options.insert(0, word[:-2])
    return options
