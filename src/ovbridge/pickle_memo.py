"""A check of pickles from elsewhere before they are read: their memo stays in proportion to their size."""

from __future__ import annotations

import pickletools
import re

_LARGE_NUMBER = re.compile(rb"r(?=(.{4}))|p(?=\d{4})", re.DOTALL)
"""What may be an instruction to remember something under a large number."""
_INSTRUCTIONS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


def check_memo(data: bytes) -> None:
    """Raise ValueError if something is to be remembered under a number that no file of this size reaches.

    The unpickler keeps a table up to the largest number: ten bytes could ask for gigabytes.
    """
    most = len(data) // 4 + 256  # the shortest object and its number take four bytes
    suspects = (m[1] is None or int.from_bytes(m[1], "little") > most for m in _LARGE_NUMBER.finditer(data))
    # Bytes of arrays look like instructions now and then; only the walk through all of them tells, and takes long.
    if any(suspects):
        for instruction, argument, _ in pickletools.genops(data):
            if instruction.name in _INSTRUCTIONS and int(argument or 0) > most:
                raise ValueError("it unfolds to more than it holds")
