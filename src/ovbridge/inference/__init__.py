"""The detector as its users see it: load a checkpoint, give pictures and names, get boxes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ovbridge.inference.queries import Query, parse_query

if TYPE_CHECKING:
    from ovbridge.inference.detector import PAPER_SIZE, Detector, Examples
    from ovbridge.inference.encoders import ImageEncoder, TextEncoder
    from ovbridge.inference.pictures import ImageLike
    from ovbridge.inference.sources import BUILTIN, CHECKPOINT_NAME, builtin_checkpoint
    from ovbridge.inference.tiling import Tiling

__all__ = [
    "BUILTIN",
    "CHECKPOINT_NAME",
    "PAPER_SIZE",
    "Detector",
    "Examples",
    "ImageEncoder",
    "ImageLike",
    "Query",
    "TextEncoder",
    "Tiling",
    "builtin_checkpoint",
    "parse_query",
]


def __getattr__(name: str) -> Any:
    # Lazily: importing torch takes seconds, and a wrong path should be said before that.
    if name not in __all__:
        raise AttributeError(f"module 'ovbridge.inference' has no attribute {name!r}")
    if name in ("BUILTIN", "CHECKPOINT_NAME", "builtin_checkpoint"):
        from ovbridge.inference import sources

        return getattr(sources, name)
    if name == "Tiling":
        from ovbridge.inference.tiling import Tiling

        return Tiling
    from ovbridge.inference import detector

    return getattr(detector, name)
