"""What the C allocator does with memory that is given back."""

from __future__ import annotations

import ctypes
import os

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of glibc's mallopt (malloc.h)."""
_NEVER_TRIM = -1


def keep_freed_memory() -> bool:
    """Let glibc keep freed memory for the next tensor; returns whether it does, which elsewhere it never will.

    By default every large tensor is mapped anew and its pages are cleared one by one when they are first touched: 15 to
    25 % of the processor time of a full-size detector. For programs, not for libraries: it holds for the whole process,
    which stays as large as it ever was. What the environment says (MALLOC_..., GLIBC_TUNABLES) is left alone.
    """
    if "GLIBC_TUNABLES" in os.environ or any(name.startswith("MALLOC_") for name in os.environ):
        return False
    try:
        if not (os.confstr("CS_GNU_LIBC_VERSION") or "").startswith("glibc"):
            return False
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, ValueError):
        return False
    wanted = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER_TRIM), (_TOP_PAD, 64 * 1024**2))
    return all(mallopt(name, value) == 1 for name, value in wanted)
