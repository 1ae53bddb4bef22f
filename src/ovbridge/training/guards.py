"""What ends a run cleanly: a disk that fills up."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ovbridge.errors import CheckpointError

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def full_disk_named(folder: Path) -> Iterator[None]:
    """Turn a full disk, wherever in the run it shows itself, into one line; raises CheckpointError."""
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        raise CheckpointError(
            f"the disk of {folder} is full ({error.strerror}): the last complete checkpoint is kept; "
            "free space, then repeat the same command"
        ) from None
