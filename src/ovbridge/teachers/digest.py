"""A hash of weights, so that labels can say exactly which teacher made them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn


def state_digest(model: nn.Module, settings: Mapping[str, Any] | None = None) -> str:
    """sha256 over the names and values of every parameter and persistent buffer, and over `settings` if there are any:
    what else decides the answers."""
    digest = hashlib.sha256()
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    if settings:
        digest.update(json.dumps(settings, sort_keys=True).encode())
    return digest.hexdigest()
