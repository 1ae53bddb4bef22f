"""MAVL as a proposer: images and texts in, boxes in pixels out.

Legend: N images, T (image, text) pairs, U distinct texts, W words, C width.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from torch import Tensor
from torchvision.ops import box_convert

from ovbridge.device import Precision, autocast, default_device, labelling_precision
from ovbridge.errors import TeacherError
from ovbridge.structures import Proposals
from ovbridge.teachers.mavl.inference import prepare_for_labelling
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.samples import batch_pixels, resize, resized_hw
from ovbridge.teachers.mavl.text import tokenize
from ovbridge.teachers.mavl.weights import build_mavl, read_mavl

BUILT_IN = {"builtin": "mavl_leak_free.safetensors", "builtin-full": "mavl_full.safetensors"}
"""Shipped weights: without novel names, and with all names (as the released MAVL)."""

_PAIRS_AT_ONCE = 256
"""(image, text) pairs fused in one batch."""


class MavlProposer:
    """A loaded MAVL. Each image is encoded once, each distinct text once for the proposer's whole life."""

    def __init__(
        self,
        model: Mavl,
        tokenizer: Tokenizer,
        *,
        name: str,
        trained_on: str,
        digest: str,
        device: torch.device,
        truncate: bool = False,
        precision: Precision = "fp32",
    ) -> None:
        """`truncate` cuts boxes to whole pixels as the released inference script does."""
        self.name, self.trained_on, self.digest = name, trained_on, digest
        self._model = model.to(device).eval()
        self.tokenizer, self._device = tokenizer, device
        self._truncate, self._precision = truncate, precision
        self._words: dict[str, Tensor] = {}

    @torch.inference_mode()
    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """Proposals indexed [image][query], best first, all the model's boxes; see `Proposer.propose`.

        The score is 1 - p(no object). Boxes may reach outside the image. Images of one size after resizing share a
        batch; the queries of one image never mix with another's.
        """
        if len(images) != len(queries):
            raise ValueError(f"{len(images)} images for {len(queries)} query lists")
        same_size: dict[tuple[int, int], list[int]] = {}
        for n, image in enumerate(images):
            same_size.setdefault(
                resized_hw(image.shape[0], image.shape[1], self._model.config.image_short_side), []
            ).append(n)
        self._encode_texts({text for texts in queries for text in texts})
        found: list[list[Proposals]] = [[] for _ in images]
        with autocast(self._device, self._precision):
            for members in same_size.values():
                batch = self._propose_batch([images[n] for n in members], [queries[n] for n in members])
                for n, proposals in zip(members, batch, strict=True):
                    found[n] = proposals
        return found

    def _propose_batch(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        pixels, _ = batch_pixels([resize(image, self._model.config.image_short_side) for image in images])
        encoded = self._model.encode(pixels.to(self._device))
        pairs = [(n, text) for n, texts in enumerate(queries) for text in texts]
        scores, boxes = [], []
        for start in range(0, len(pairs), _PAIRS_AT_ONCE):
            chunk = pairs[start : start + _PAIRS_AT_ONCE]
            index_T = torch.tensor([n for n, _ in chunk], device=self._device)
            words_TWC, padding_TW = self._stack([text for _, text in chunk])
            states = self._model.fuse(encoded, index_T, words_TWC, padding_TW)[-1]
            scores.append(1.0 - self._model.token_logits(states).float().softmax(dim=-1)[..., -1])
            boxes.append(self._model.boxes(states, encoded.reference[index_T]).float())
        flat = [p for s, b in zip(scores, boxes, strict=True) for p in zip(s.cpu(), b.cpu(), strict=True)]
        grouped: list[list[Proposals]] = [[] for _ in images]
        for (n, _), (score, box) in zip(pairs, flat, strict=True):
            height, width = images[n].shape[:2]
            grouped[n].append(self._in_pixels(score, box, height, width))
        return grouped

    def _in_pixels(self, scores: Tensor, boxes_cxcywh: Tensor, height: int, width: int) -> Proposals:
        order = scores.argsort(descending=True, stable=True)
        boxes = box_convert(boxes_cxcywh, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
        return Proposals(boxes_xyxy=(boxes.trunc() if self._truncate else boxes)[order], scores=scores[order])

    def _encode_texts(self, texts: set[str]) -> None:
        """Add the missing texts to the cache, in one batch."""
        missing = sorted(texts - self._words.keys())
        if not missing:
            return
        # One position is kept for "no object"; RoBERTa's positions start at 2.
        limit = min(self._model.config.token_positions - 1, self._model.config.text.positions - 2)
        ids, padding = tokenize(self.tokenizer, missing, limit=limit)
        states = self._model.encode_text(ids.to(self._device), padding.to(self._device))
        for text, row, length in zip(missing, states, (~padding).sum(dim=1).tolist(), strict=True):
            self._words[text] = row[:length].clone()

    def _stack(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Cached words of `texts`, padded: [T, W, C] and the mask."""
        words = [self._words[text] for text in texts]
        stacked = torch.nn.utils.rnn.pad_sequence(words, batch_first=True)
        lengths = torch.tensor([len(w) for w in words], device=self._device)
        return stacked, torch.arange(stacked.shape[1], device=self._device) >= lengths.unsqueeze(1)


def load_mavl(
    name_or_path: str | Path,
    device: torch.device | None = None,
    *,
    tokenizer: str | None = None,
    truncate: bool = False,
    precision: Precision = "fp32",
) -> MavlProposer:
    """A proposer from "builtin" (leak-free), "builtin-full" or a safetensors file.

    Raises TeacherError for an unknown name or a tokenizer that cannot be found, CheckpointError for a bad file.
    """
    path = _weights_path(str(name_or_path))
    file = read_mavl(path, tokenizer=tokenizer)
    device = device or default_device()
    precision = labelling_precision(device, precision)
    return MavlProposer(
        prepare_for_labelling(build_mavl(file, path), precision),
        file.tokenizer,
        name=str(name_or_path),
        trained_on=file.trained_on,
        digest=file.digest,
        device=device,
        truncate=truncate,
        precision=precision,
    )


def _weights_path(name: str) -> Path:
    if name in BUILT_IN:
        path = Path(__file__).parents[1] / "weights" / BUILT_IN[name]
        if not path.is_file():
            raise TeacherError(
                f"built-in proposer {name!r} is not in this installation ({path.name} missing): reinstall"
            )
        return path
    path = Path(name)
    if not path.exists():
        raise TeacherError(f"proposer {name!r} is neither a file nor one of {', '.join(BUILT_IN)}")
    return path
