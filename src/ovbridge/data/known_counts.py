"""Whether a prepared file has the size that the public download is known to have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from ovbridge.errors import DataError

Verdict = Literal["match", "mismatch", "sample"]
"""sample: less than half as large as the public file, so it is a part of it on purpose and nothing can be said."""


def against_known(
    found: Mapping[str, int], known: Mapping[str, int], source: object, *, size_key: str, allow_mismatch: bool
) -> Verdict:
    """Compare counts with the known ones; `size_key` names the count that tells a full file from a sample.

    Raises DataError naming the first count that differs, unless `allow_mismatch`.
    """
    if 2 * found[size_key] < known[size_key]:
        return "sample"
    for key, expected in known.items():
        if found[key] != expected:
            if allow_mismatch:
                return "mismatch"
            raise DataError(
                f"{source} gives {found[key]:,} {key.replace('_', ' ')}, the public files {expected:,}: "
                "fetch it again, or pass --allow-count-mismatch"
            )
    return "match"
