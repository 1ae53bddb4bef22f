"""What counts as a number in a file that people wrote."""

from __future__ import annotations

import sys
from typing import Any, TypeGuard

_LARGEST, _LARGEST_ID = sys.float_info.max, 2**63 - 1


def is_finite(value: Any) -> TypeGuard[int | float]:
    """Whether a JSON value is a number that fits a float and is neither NaN nor infinite."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= _LARGEST


def is_id(value: Any) -> TypeGuard[int]:
    """Whether a JSON value is a whole number that the evaluator takes as an id."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= _LARGEST_ID


def are_ids(value: Any) -> TypeGuard[list[int]]:
    """Whether a JSON value is a list of ids."""
    return isinstance(value, list) and all(map(is_id, value))
