from __future__ import annotations

from typing import Any

import pytest

from ovbridge.errors import VocabularyError
from ovbridge.inference.queries import Query, parse_queries, parse_query


def test_synonyms_and_thresholds() -> None:
    assert parse_query(" sofa | couch =0.4") == Query(name="sofa", words=("sofa", "couch"), score_threshold=0.4)
    assert parse_query("mug") == Query(name="mug", words=("mug",))
    assert parse_query("mug|mug").words == ("mug",)


def test_a_stored_name_is_taken_as_it_stands() -> None:
    assert parse_query("a|b=1", {"a|b=1"}) == Query(name="a|b=1", words=("a|b=1",))


@pytest.mark.parametrize("text", ["", " ", "a||b", "=0.4", "mug=", "mug=1.5", "mug=-1", "mug=nan", "mug=high"])
def test_bad_queries(text: str) -> None:
    with pytest.raises(VocabularyError):
        parse_query(text)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"words": "mug"}, "one string"), ({"score_threshold": 5.0}, "from 0 to 1"), ({"words": (None,)}, "give a text")],
)
def test_queries_that_would_not_mean_what_they_say(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        Query(**{"name": "mug", "words": ("mug",), **fields})


def test_one_name_once() -> None:
    with pytest.raises(VocabularyError, match="'sofa' is given twice"):
        parse_queries(["sofa|couch", "sofa"])
