"""Which classes are base, novel and unused, and the vocabulary of an annotation file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast, get_args

from ovbridge.errors import DataError
from ovbridge.vocabulary import Role, Vocabulary
from ovbridge.vocabulary.coco_names import COCO_OVD

_FREQUENCY_ROLE: dict[str, Role] = {"f": "base", "c": "base", "r": "novel"}


def roles_of(categories: Sequence[dict[str, Any]]) -> tuple[Role, ...]:
    """What each category is to the open-vocabulary protocol, in the order given.

    `role` keys win. Next come LVIS frequencies (rare is novel), then the roles of OV-COCO, where all names are COCO's
    and either its 17 novel ones are all there or the ids are COCO's too (a part of it; a file of one's own that happens
    to have cats is no part of COCO). Else every class is base. Raises DataError where only some categories have a role.
    """
    if any("role" in c for c in categories):
        return tuple(_role_given(c) for c in categories)
    frequencies = [str(c.get("frequency")) for c in categories]
    if categories and all(f in _FREQUENCY_ROLE for f in frequencies):
        return tuple(_FREQUENCY_ROLE[f] for f in frequencies)
    names = {c["name"] for c in categories}
    coco_id = dict(zip(COCO_OVD.names, COCO_OVD.category_ids, strict=True))
    is_part = all(coco_id.get(c["name"]) == c["id"] for c in categories)
    if names <= set(COCO_OVD.names) and (is_part or names >= set(COCO_OVD.names_of("novel"))):
        role = dict(zip(COCO_OVD.names, COCO_OVD.roles, strict=True))
        return tuple(role[c["name"]] for c in categories)
    base: Role = "base"
    return (base,) * len(categories)


def _role_given(category: dict[str, Any]) -> Role:
    if "role" not in category:
        raise DataError(
            f"category {category['id']} ({category['name']}) has no role, others have: give it base, novel or unused"
        )
    if category["role"] not in get_args(Role):
        raise DataError(
            f"category {category['id']} ({category['name']}) has role {category['role']!r}: use base, novel or unused"
        )
    return cast(Role, category["role"])


def vocabulary_of(categories: Sequence[dict[str, Any]], source: str) -> Vocabulary:
    """The classes of a file in category-id order, the order of the official text banks.

    Raises DataError, prefixed with `source`, where the 80 COCO names stand in another order: the classifier's
    columns would then mean other classes.
    """
    ordered = sorted(categories, key=lambda c: int(c["id"]))
    names = tuple(str(c["name"]) for c in ordered)
    if set(names) == set(COCO_OVD.names) and names != COCO_OVD.names:
        k = next(k for k in range(len(names)) if names[k] != COCO_OVD.names[k])
        raise DataError(
            f"{source}: category {ordered[k]['id']} is {names[k]!r}, where COCO has {COCO_OVD.names[k]!r} "
            f"(class number {k + 1} by id): give the categories COCO's order"
        )
    try:
        roles = roles_of(ordered)
    except DataError as error:
        raise DataError(f"{source}: {error}") from None
    return Vocabulary(names=names, roles=roles, category_ids=tuple(int(category["id"]) for category in ordered))
