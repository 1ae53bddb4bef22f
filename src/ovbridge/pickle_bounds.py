"""Pickles from elsewhere are read in proportion to their size: their memo, and the bytes that they unfold to."""

from __future__ import annotations

import io
import pickle
import pickletools
import re

TOO_MUCH = "it unfolds to more than it holds"

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
                raise ValueError(TOO_MUCH)


class BoundedUnpickler(pickle.Unpickler):
    """A base of restricted readers: their `find_class` says what a name stands for, and gives `encode` for
    `_codecs.encode`."""

    def __init__(self, data: bytes, encoding: str = "ASCII") -> None:
        super().__init__(io.BytesIO(data), encoding=encoding)
        self._left = len(data)

    def encode(self, text: object, encoding: object = "latin1") -> bytes:
        """The bytes of an array as old protocols write them; each is in the file, so together they are no longer."""
        if not isinstance(text, str) or encoding != "latin1":
            raise ValueError("text in an unexpected encoding")
        self._left -= len(text)
        if self._left < 0:
            raise ValueError(TOO_MUCH)
        return text.encode("latin1")
