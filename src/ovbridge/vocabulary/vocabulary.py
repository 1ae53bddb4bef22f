"""The ordered class names of a data set and what each is to the open-vocabulary protocol.

The order is a contract: column k of a text bank, of the classifier's logits and of every `class_ids`
tensor is `names[k]`. Official COCO and LVIS classifiers are ordered by category id, and so are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from ovbridge.errors import VocabularyError

Role = Literal["base", "novel", "unused"]
"""base: has training boxes. novel: has none, is evaluated. unused: neither (the 15 of OV-COCO)."""


@dataclass(frozen=True, kw_only=True)
class Vocabulary:
    """K class names in order, with their roles and the category ids of their annotation file."""

    names: tuple[str, ...]
    roles: tuple[Role, ...]
    category_ids: tuple[int, ...]

    def __post_init__(self) -> None:
        k = len(self.names)
        if len(self.roles) != k or len(self.category_ids) != k:
            raise VocabularyError(
                f"{k} names, {len(self.roles)} roles and {len(self.category_ids)} category ids: one of each is needed"
            )
        for label, values in (("name", self.names), ("category id", self.category_ids)):
            seen: set[Any] = set()
            for value in values:
                if value in seen:
                    raise VocabularyError(f"{label} {value!r} appears twice in the vocabulary: remove one")
                seen.add(value)
        for name, role in zip(self.names, self.roles, strict=True):
            if role not in get_args(Role):
                raise VocabularyError(f"class {name!r} has role {role!r}: use base, novel or unused")

    @classmethod
    def of_names(cls, names: Sequence[str], role: Role = "base") -> Vocabulary:
        """A plain list of names, all of one role, with category ids 1..K."""
        return cls(names=tuple(names), roles=(role,) * len(names), category_ids=tuple(range(1, len(names) + 1)))

    def __len__(self) -> int:
        return len(self.names)

    def columns(self, role: Role) -> tuple[int, ...]:
        """Positions of the classes of one role, ascending."""
        return tuple(i for i, r in enumerate(self.roles) if r == role)

    def names_of(self, role: Role) -> tuple[str, ...]:
        """Names of one role, in vocabulary order."""
        return tuple(self.names[i] for i in self.columns(role))

    def column_of_category(self) -> dict[int, int]:
        """COCO category id → column."""
        return {category_id: i for i, category_id in enumerate(self.category_ids)}

    def index(self, name: str) -> int:
        """Column of `name`; raises VocabularyError with the nearest names if it is not there."""
        try:
            return self.names.index(name)
        except ValueError:
            import difflib

            near = difflib.get_close_matches(name, self.names, n=3)
            hint = f"; did you mean {', '.join(near)}?" if near else ""
            raise VocabularyError(f"class {name!r} is not in the vocabulary of {len(self)} names{hint}") from None

    def to_json(self) -> list[dict[str, Any]]:
        """Records for a checkpoint's or a store's metadata, one a class, in order."""
        return [
            {"name": n, "role": r, "category_id": c}
            for n, r, c in zip(self.names, self.roles, self.category_ids, strict=True)
        ]

    @classmethod
    def from_json(cls, records: Sequence[dict[str, Any]]) -> Vocabulary:
        """Inverse of `to_json`; raises VocabularyError where a key is missing."""
        try:
            return cls(
                names=tuple(str(r["name"]) for r in records),
                roles=tuple(r["role"] for r in records),
                category_ids=tuple(int(r["category_id"]) for r in records),
            )
        except (KeyError, TypeError) as error:
            raise VocabularyError(f"a vocabulary record lacks {error}: each needs name, role and category_id") from None
