"""Files inside tar archives, read by path without unpacking: `images/n02084071.tar/n02084071_1.JPEG`."""

from __future__ import annotations

import functools
import io
import os
import tarfile
from pathlib import Path

from ovbridge.errors import DataError

INDEXED_ARCHIVES = 256
"""Tables of contents kept in memory; one of 1,400 files takes about 0.3 MB."""


def opened(path: Path) -> Path | io.BytesIO:
    """What to hand to a reader for `path`: the path itself, or the bytes where a part of it is a tar archive.

    Raises DataError where the archive has no such member.
    """
    archive = _archive_of(path)
    if archive is None:
        return path
    index = _index(archive, archive.stat().st_mtime_ns)
    member = path.relative_to(archive).as_posix()
    if member not in index:
        raise DataError(f"{archive} has no member {member!r}: the annotation file belongs to another archive")
    offset, size = index[member]
    with archive.open("rb") as file:
        file.seek(offset)
        return io.BytesIO(file.read(size))


def is_there(path: Path) -> bool:
    """Whether `path` is a file, on disk or in an archive."""
    archive = _archive_of(path)
    if archive is None:
        return os.path.isfile(path)  # Path.is_file raises where a name is too long for the file system.
    return path.relative_to(archive).as_posix() in _index(archive, archive.stat().st_mtime_ns)


def members(archive: Path) -> list[str]:
    """The files of an archive in its order; raises DataError if it is none."""
    return list(_index(archive, archive.stat().st_mtime_ns))


def _archive_of(path: Path) -> Path | None:
    return next((parent for parent in path.parents if parent.suffix == ".tar" and os.path.isfile(parent)), None)


@functools.lru_cache(maxsize=INDEXED_ARCHIVES)
def _index(archive: Path, _modified: int) -> dict[str, tuple[int, int]]:
    """Member → (offset of its bytes, their number); read from the headers alone."""
    try:
        with tarfile.open(archive, mode="r:") as tar:
            return {member.name: (member.offset_data, member.size) for member in tar if member.isfile()}
    except (tarfile.TarError, OSError) as error:
        raise DataError(f"{archive} is not an uncompressed tar archive ({error}): copy it again") from None
