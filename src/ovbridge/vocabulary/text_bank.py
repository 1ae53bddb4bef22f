"""The text bank: one embedding a class name, the fixed weights of the detector's classifier.

Legend: K classes, D embedding width. Rows are as the text encoder gave them (not unit length); the
classifier normalises. Stored as safetensors with names, template and encoder id in the metadata.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from ovbridge.errors import VocabularyError

PAPER_TEMPLATE = "a photo of a {}"
"""The single prompt of the paper's classifiers."""


@dataclass(frozen=True, kw_only=True)
class TextBank:
    """Text embeddings of an ordered list of names.

    Raises VocabularyError where names and rows do not match or an embedding is empty or not finite.
    """

    names: tuple[str, ...]
    embeddings_KD: Tensor  # noqa: N815 - dense-maths suffix
    """[K, D] float32, not normalised."""
    encoder: str
    """Which text encoder made it, e.g. "open_clip:ViT-B-32-quickgelu/openai" or "builtin"."""
    templates: tuple[str, ...] = (PAPER_TEMPLATE,)
    """Prompt templates; several are averaged after normalising (a prompt ensemble)."""

    def __post_init__(self) -> None:
        bank = self.embeddings_KD
        if bank.ndim != 2 or len(bank) != len(self.names):
            raise VocabularyError(
                f"text bank is {tuple(bank.shape)}, the vocabulary has {len(self.names)} names: "
                "rebuild it with 'ovbridge label text'"
            )
        bad = ~torch.isfinite(bank).all(dim=1) | (bank.abs().sum(dim=1) == 0)
        if bool(bad.any()):
            name = self.names[int(bad.nonzero()[0])]
            raise VocabularyError(f"the embedding of {name!r} is zero or not finite: rebuild the text bank")

    @property
    def dim(self) -> int:
        """Embedding width D."""
        return int(self.embeddings_KD.shape[1])

    def digest(self) -> str:
        """sha256 over names, encoder, templates and values: equal banks have equal digests."""
        digest = hashlib.sha256(json.dumps([self.names, self.encoder, self.templates]).encode())
        digest.update(self.embeddings_KD.contiguous().float().numpy().tobytes())
        return digest.hexdigest()

    def select(self, names: Sequence[str]) -> TextBank:
        """The rows of `names`, in that order; raises VocabularyError naming every absent one."""
        row = {name: i for i, name in enumerate(self.names)}
        absent = [name for name in names if name not in row]
        if absent:
            raise VocabularyError(
                f"no stored text embedding for {', '.join(map(repr, absent))}: "
                "make a bank of all names with 'ovbridge label text'"
            )
        return TextBank(
            names=tuple(names),
            embeddings_KD=self.embeddings_KD[[row[name] for name in names]],
            encoder=self.encoder,
            templates=self.templates,
        )

    def save(self, path: Path) -> None:
        """Write one safetensors file (atomically: aside, then renamed)."""
        metadata = {
            "names": json.dumps(self.names),
            "encoder": self.encoder,
            "templates": json.dumps(self.templates),
        }
        aside = path.with_name(path.name + ".part")
        save_file({"embeddings": self.embeddings_KD.float().contiguous()}, aside, metadata=metadata)
        aside.replace(path)

    @classmethod
    def load(cls, path: Path) -> TextBank:
        """Read a file written by `save`; raises VocabularyError if it is not one."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                return cls(
                    names=tuple(json.loads(metadata["names"])),
                    embeddings_KD=file.get_tensor("embeddings").float(),
                    encoder=metadata["encoder"],
                    templates=tuple(json.loads(metadata["templates"])),
                )
        except (OSError, KeyError, SafetensorError, json.JSONDecodeError) as error:
            raise VocabularyError(f"{path} is not a text bank ({error}): make one with 'ovbridge label text'") from None

    @classmethod
    def from_npy(cls, path: Path, names: Sequence[str], *, encoder: str, template: str = PAPER_TEMPLATE) -> TextBank:
        """Read a bare `.npy` [K, D] as the official repositories ship it, rows in the order of `names`."""
        try:
            array = np.load(path, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise VocabularyError(f"{path} is not a .npy array of text embeddings ({error})") from None
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiu":
            kind = array.dtype if isinstance(array, np.ndarray) else "several arrays"
            raise VocabularyError(
                f"{path} holds {kind}, no real numbers: give one .npy array of text embeddings [K, D]"
            )
        return cls(
            names=tuple(names),
            embeddings_KD=torch.from_numpy(np.asarray(array, dtype=np.float32)),
            encoder=encoder,
            templates=(template,),
        )
