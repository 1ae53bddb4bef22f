"""What to look for: names with synonyms and thresholds of their own, as people write them.

"sofa|couch=0.4" is one class called sofa that is found by either word, from a score of 0.4 on.
"""

from __future__ import annotations

import math
from collections.abc import Container, Sequence
from dataclasses import dataclass

from ovbridge.errors import VocabularyError


@dataclass(frozen=True, kw_only=True)
class Query:
    """One class to look for."""

    name: str
    """What its detections are called."""
    words: tuple[str, ...]
    """The texts that stand for it; a region's score is the best of them. May be empty for a class of examples."""
    score_threshold: float | None = None
    """Only scores above it, in [0, 1]; None takes the one of the call."""

    def __post_init__(self) -> None:
        words: object = self.words
        if isinstance(words, str):
            raise VocabularyError(f"the words of {self.name!r} are one string: give a tuple, e.g. ({words!r},)")
        for text in (self.name, *self.words):
            _check_text(text)
        if self.score_threshold is not None and not 0.0 <= self.score_threshold <= 1.0:
            raise VocabularyError(f"{self.name!r} has the threshold {self.score_threshold}: give one from 0 to 1")


def parse_query(text: str, stored: Container[str] = ()) -> Query:
    """`text` is "name", "name|synonym|...", each with "=0.4" at the end or not.

    A name that the checkpoint stores (`stored`) is taken as it stands, whatever characters it holds.
    Raises VocabularyError for an empty name, for one that is no text, and for a threshold that is none.
    """
    _check_text(text)
    text = text.strip()
    if text in stored:
        return Query(name=text, words=(text,))
    names, equals, threshold = text.rpartition("=")
    words = tuple(word.strip() for word in (names if equals else text).split("|"))
    if not all(words):
        raise VocabularyError(
            f"there is no name to look for in {text!r}, or one is empty: give at least one, e.g. ['red mug']"
        )
    return Query(
        name=words[0],
        words=tuple(dict.fromkeys(words)),
        score_threshold=_threshold(threshold, text) if equals else None,
    )


def parse_queries(names: Sequence[str | Query], stored: Container[str] = ()) -> tuple[Query, ...]:
    """Every class of `names`; raises VocabularyError if there is none, one is bad, or one is given twice."""
    if isinstance(names, str):
        raise VocabularyError(
            f"names is one string, {names!r}: give a list, e.g. {[n.strip() for n in names.split(',')]}"
        )
    names = tuple(names)
    if not names:
        raise VocabularyError("there is no name to look for: give at least one, e.g. ['red mug']")
    queries = tuple(name if isinstance(name, Query) else parse_query(name, stored) for name in names)
    seen: set[str] = set()
    for query in queries:
        if query.name in seen:
            raise VocabularyError(f"name {query.name!r} is given twice: give it once")
        seen.add(query.name)
    return queries


def _check_text(text: object) -> None:
    if not isinstance(text, str):
        raise VocabularyError(f"name {text!r} is a {type(text).__name__}: give a text, e.g. 'red mug'")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise VocabularyError(f"name {text!r} holds bytes that are no UTF-8 text: write it again") from None


def _threshold(text: str, whole: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0.0 <= value <= 1.0:
        raise VocabularyError(f"{whole!r} has the threshold {text.strip()!r}: give one from 0 to 1, as in 'mug=0.4'")
    return value
