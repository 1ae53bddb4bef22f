"""OVBridge: open-vocabulary object detection by bridging object- and image-level supervision.

>>> from ovbridge import Detector
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ovbridge.inference import Detector
    from ovbridge.structures import Detections

__version__ = version("ovbridge")
__all__ = ["Detections", "Detector", "__version__"]


def __getattr__(name: str) -> Any:
    # Lazily: importing torch takes seconds, and `ovbridge --help` needs none of it.
    if name == "Detector":
        from ovbridge.inference import Detector

        return Detector
    if name == "Detections":
        from ovbridge.structures import Detections

        return Detections
    raise AttributeError(f"module 'ovbridge' has no attribute {name!r}")
