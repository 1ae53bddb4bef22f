"""The CLIP that belongs to a checkpoint, loaded when it is first needed."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.errors import OVBridgeError, TeacherError
from ovbridge.teachers.clip import ClipTeacher, load_clip
from ovbridge.vocabulary import TextBank


class LazyClip:
    """Embeds names and crops with the CLIP called `name`; several threads may ask at once."""

    def __init__(self, name: str, device: torch.device) -> None:
        self.name = name
        self._device = device
        self._clip: ClipTeacher | None = None
        self._lock = threading.Lock()

    def load(self) -> ClipTeacher:
        """The CLIP itself; raises TeacherError if it cannot be loaded."""
        with self._lock:
            if self._clip is None:
                try:
                    self._clip = load_clip(self.name.removeprefix("open_clip:"), self._device)
                except OVBridgeError as error:
                    raise TeacherError(
                        f"this server can only look for the names of its vocabulary: their text encoder {self.name!r} "
                        f"cannot be loaded ({error})"
                    ) from None
            return self._clip

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        """As `ClipTeacher.embed_names`."""
        return self.load().embed_names(names, templates)

    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] unit embeddings of whole texts."""
        return F.normalize(self.load().embed_texts(texts), dim=1)

    def embed_crop(self, crop_HW3: np.ndarray[Any, Any]) -> Tensor:
        """[D] unit embedding of one RGB crop."""
        return F.normalize(self.load().embed_crops([crop_HW3])[0], dim=0)
