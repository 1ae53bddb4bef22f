"""Recognising a novel class by any of its names: as it is written, by its synonyms, in the plural, in a sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ovbridge.data.caption_tags import Tagger, make_tagger
from ovbridge.data.coco_synonyms import lvis_synonyms
from ovbridge.data.splits import roles_of
from ovbridge.errors import DataError


class NovelNames:
    """The novel classes of a target vocabulary, and the others whose names must not be taken for theirs.

    The longest name wins, so "hot dog" is no dog where both are classes. A name that the target itself gives to a
    class that is not novel is never an alarm, even where LVIS lists it as a synonym of a novel one too.
    """

    def __init__(self, categories: Sequence[dict[str, Any]], source: str) -> None:
        """`categories` are COCO records with roles (or LVIS frequencies, or COCO's names); raises DataError
        where none is novel."""
        try:
            roles = roles_of(categories)
        except DataError as error:
            raise DataError(f"{source}: {error}") from None
        self._names = [str(c["name"]) for c in categories]
        self.roles = dict(zip(self._names, roles, strict=True))
        self.names = tuple(name for name, role in self.roles.items() if role == "novel")
        if not self.names:
            raise DataError(f"{source}: no class is novel, so nothing can leak: give --target with the novel classes")
        self.category_ids = {int(c["id"]) for c, role in zip(categories, roles, strict=True) if role == "novel"}
        synonyms = {
            name: tuple(dict.fromkeys([*c.get("synonyms", ()), *lvis_synonyms(name)]))
            for name, c in zip(self._names, categories, strict=True)
        }
        self._tag: Tagger = make_tagger(self._names, synonyms, "words")

    def in_text(self, text: str) -> tuple[str, ...]:
        """Novel classes that a text names; words run together by _ or / count as words."""
        return tuple(
            self._names[k]
            for k in self._tag([text.replace("_", " ").replace("/", " ")])
            if self.roles[self._names[k]] == "novel"
        )

    def of_class(self, name: str) -> tuple[str, ...]:
        """Novel classes that a class name stands for or contains; none for a class that the target knows as another."""
        role = self.roles.get(name)
        if role is not None:
            return (name,) if role == "novel" else ()
        return self.in_text(name)
