"""Where a checkpoint comes from: the package itself, a file, the folder of a run, or the hub."""

from __future__ import annotations

from pathlib import Path

from ovbridge.errors import CheckpointError
from ovbridge.inference.hub import fetch_checkpoint

CHECKPOINT_NAME = "detector.safetensors"
"""What a folder or a hub repository holds."""

BUILTIN = "builtin"
"""The name under which the detector that ships with the package is loaded."""


def builtin_checkpoint() -> Path:
    """The detector trained in the built-in world that ships with the package; raises CheckpointError if absent."""
    # Found by place: importing the recipes would import all of training.
    path = Path(__file__).parents[1] / "recipes" / "weights" / "world_detector.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"the built-in detector {path} is absent: install the package again, "
            "or name another with --checkpoint (Detector.load(FILE))"
        )
    return path


def checkpoint_path(source: str | Path) -> Path:
    """The local file that `source` means: "builtin", a file, a folder that holds one, or "hf://owner/name".

    Raises CheckpointError where there is none.
    """
    if str(source) == BUILTIN:
        return builtin_checkpoint()
    if str(source).startswith("hf:"):
        return fetch_checkpoint(str(source), CHECKPOINT_NAME)
    path = Path(source)
    if path.is_dir() and not (path / CHECKPOINT_NAME).is_file():
        raise CheckpointError(f"folder {path} holds no {CHECKPOINT_NAME}: give the file itself, or the folder of a run")
    return path / CHECKPOINT_NAME if path.is_dir() else path
