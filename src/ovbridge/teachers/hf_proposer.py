"""Text-driven detectors of `transformers` as proposers: Grounding DINO, MM-Grounding-DINO and OWLv2.

Each is asked in its own way. "every red mug" becomes the phrase "red mug"; a class-agnostic query ("all objects")
becomes a phrase of its own for Grounding DINO and the objectness head for OWLv2, which has one.
Legend: N images, T phrases, B boxes, W tokens of a caption, D embedding width.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchvision.ops import box_convert

from ovbridge.device import Precision, autocast
from ovbridge.errors import TeacherError
from ovbridge.structures import Proposals
from ovbridge.teachers.digest import state_digest
from ovbridge.teachers.protocol import Proposer, class_in

BOXES_KEPT = 300
"""Best boxes a query, as many as MAVL has: OWLv2 predicts 3,600."""

_CAPTIONS_AT_ONCE = 8
_TEXTS_AT_ONCE = 512

TRAINED_ON = {
    "grounding-dino": "Grounding DINO, by its authors on Objects365, GoldG, Cap4M and, in the base variant, COCO, "
    "OpenImages and RefCOCO (arXiv 2303.05499): has seen novel names",
    "mm-grounding-dino": "MM-Grounding-DINO, by its authors on Objects365, GoldG and, by variant, GRIT, V3Det, COCO, "
    "LVIS (arXiv 2401.02361): has seen novel names",
    "owlv2": "OWLv2, by its authors on WebLI pseudo boxes and, by variant, Objects365, Visual Genome and LVIS base "
    "(arXiv 2306.09683): has seen novel names",
}
"""What the published weights of each family have seen; a model of one's own says so with --trained-on."""


class GroundingDinoProposer:
    """Grounding DINO or MM-Grounding-DINO: phrases share a caption of at most `max_text_len` tokens.

    A phrase's score is the mean over its tokens, as in the published zero-shot evaluation. Names of one image go
    through together, its class-agnostic queries in a caption of their own, so neither changes the other's boxes.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        trained_on: str,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.name, self.trained_on, self.digest = name, trained_on, state_digest(model)
        self._model = model.to(device).eval().requires_grad_(False)
        self._images, self._tokenizer = processor.image_processor, processor.tokenizer
        self._device, self._precision = device, precision
        self._limit = int(model.config.max_text_len)
        self._stop: int = self._tokenizer.convert_tokens_to_ids(".")

    @torch.inference_mode()
    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """See `Proposer.propose`; at most `BOXES_KEPT` boxes a query."""
        found: list[list[Proposals | None]] = [[None] * len(texts) for texts in queries]
        for members in _equally_large(images):
            captions = [(n, caption) for n in members for caption in self._captions(queries[n])]
            for start in range(0, len(captions), _CAPTIONS_AT_ONCE):
                part = captions[start : start + _CAPTIONS_AT_ONCE]
                logits_NBW, boxes_NB4 = self._forward([images[n] for n, _ in part], [c for _, c in part])
                for (n, caption), logits_BW, boxes_B4 in zip(part, logits_NBW, boxes_NB4, strict=True):
                    height, width = images[n].shape[:2]
                    boxes = box_convert(boxes_B4, "cxcywh", "xyxy") * torch.tensor([width, height, width, height])
                    for q, (first, last) in caption.spans.items():
                        scores_B = logits_BW[:, first:last].sigmoid().mean(dim=1)
                        found[n][q] = _best(boxes, scores_B)
        return [[p for p in per_image if p is not None] for per_image in found]

    def _forward(self, images: Sequence[np.ndarray], captions: Sequence[_Caption]) -> tuple[Tensor, Tensor]:
        pixels = self._images(images=list(images), return_tensors="pt").to(self._device)
        width = max(len(c.token_ids) for c in captions)
        padding = self._tokenizer.pad_token_id
        ids = torch.tensor([[*c.token_ids, *[padding] * (width - len(c.token_ids))] for c in captions])
        inside = torch.arange(width) < torch.tensor([[len(c.token_ids)] for c in captions])
        with autocast(self._device, self._precision):
            output = self._model(
                **pixels, input_ids=ids.to(self._device), attention_mask=inside.long().to(self._device)
            )
        return output.logits.float().cpu(), output.pred_boxes.float().cpu()

    def _captions(self, queries: Sequence[str]) -> Iterator[_Caption]:
        """Captions that hold all queries of an image, class-agnostic ones apart from names."""
        names = [class_in(query) for query in queries]
        for group in ([q for q, name in enumerate(names) if name is None], [q for q, name in enumerate(names) if name]):
            ids: list[int] = [self._tokenizer.cls_token_id]
            spans: dict[int, tuple[int, int]] = {}
            for q in group:
                phrase = self._phrase(names[q] or queries[q])
                if spans and len(ids) + len(phrase) + 2 > self._limit:
                    yield _Caption([*ids, self._tokenizer.sep_token_id], spans)
                    ids, spans = [self._tokenizer.cls_token_id], {}
                spans[q] = (len(ids), len(ids) + len(phrase))
                ids += [*phrase, self._stop]
            if spans:
                yield _Caption([*ids, self._tokenizer.sep_token_id], spans)

    def _phrase(self, text: str) -> list[int]:
        # A full stop or a question mark would end the phrase; what is too long for a caption loses its end.
        plain = re.sub(r"[.?]+", " ", text.lower()).strip() or "object"
        ids: list[int] = self._tokenizer(plain, add_special_tokens=False)["input_ids"]
        return ids[: self._limit - 3]


class _Caption:
    """Token ids of "[CLS] red mug . kite . [SEP]" and where the tokens of each query are."""

    def __init__(self, token_ids: list[int], spans: dict[int, tuple[int, int]]) -> None:
        self.token_ids, self.spans = token_ids, spans


class Owlv2Proposer:
    """OWLv2: an image is encoded once, a phrase once for the proposer's whole life; vocabularies of any length."""

    def __init__(
        self,
        model: Any,
        processor: Any,
        *,
        name: str,
        trained_on: str,
        device: torch.device,
        precision: Precision = "fp32",
    ) -> None:
        self.name, self.trained_on, self.digest = name, trained_on, state_digest(model)
        self._model = model.to(device).eval().requires_grad_(False)
        self._images, self._tokenizer = processor.image_processor, processor.tokenizer
        self._device, self._precision = device, precision
        self._phrases: dict[str, Tensor] = {}

    @torch.inference_mode()
    def propose(self, images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]) -> list[list[Proposals]]:
        """See `Proposer.propose`; at most `BOXES_KEPT` boxes a query."""
        if not images:
            return []
        self._encode_phrases({name for texts in queries for text in texts if (name := class_in(text))})
        pixels = self._images(images=list(images), return_tensors="pt")["pixel_values"].to(self._device)
        with autocast(self._device, self._precision):
            features = self._model.image_embedder(pixel_values=pixels)[0]
            tokens_NBD = features.flatten(1, 2)
            boxes_NB4 = self._model.box_predictor(tokens_NBD, features).float().cpu()
            objectness_NB = self._model.objectness_predictor(tokens_NBD).float().sigmoid().cpu()
        found = []
        for image, tokens_BD, boxes_B4, objectness_B, texts in zip(
            images, tokens_NBD, boxes_NB4, objectness_NB, queries, strict=True
        ):
            # The picture was padded to a square at its right or bottom.
            boxes = box_convert(boxes_B4, "cxcywh", "xyxy") * max(image.shape[:2])
            scores = self._scores(tokens_BD, [name for text in texts if (name := class_in(text))])
            found.append(
                [_best(boxes, next(scores) if class_in(text) else objectness_B) for text in texts],
            )
        return found

    def _scores(self, tokens_BD: Tensor, names: Sequence[str]) -> Iterator[Tensor]:
        """[B] scores of every name, computed for `_TEXTS_AT_ONCE` names at a time."""
        for start in range(0, len(names), _TEXTS_AT_ONCE):
            phrases_TD = torch.stack([self._phrases[name] for name in names[start : start + _TEXTS_AT_ONCE]])
            with autocast(self._device, self._precision):
                logits_BT = self._model.class_predictor(tokens_BD[None], phrases_TD[None])[0][0]
            yield from logits_BT.float().sigmoid().cpu().T

    def _encode_phrases(self, names: set[str]) -> None:
        missing = sorted(names - self._phrases.keys())
        length = int(self._model.config.text_config.max_position_embeddings)
        for start in range(0, len(missing), _TEXTS_AT_ONCE):
            part = missing[start : start + _TEXTS_AT_ONCE]
            tokens = self._tokenizer(
                [f"a photo of a {name}" for name in part],
                padding="max_length",
                truncation=True,
                max_length=length,
                return_tensors="pt",
            ).to(self._device)
            embedded = self._model.owlv2.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
            self._phrases |= dict(zip(part, embedded.pooler_output.float(), strict=True))


def load_hf_proposer(
    name_or_folder: str, device: torch.device, *, trained_on: str | None = None, precision: Precision = "fp32"
) -> Proposer:
    """A Grounding DINO, MM-Grounding-DINO or OWLv2 from a local folder or the Hugging Face hub.

    Reads safetensors only and runs no code that comes with the model. `trained_on` overrides what is known of the
    family. Raises TeacherError where it cannot be found or loaded, or is another kind of model.
    """
    from transformers import AutoConfig, AutoModelForZeroShotObjectDetection, AutoProcessor

    offline = Path(name_or_folder).is_dir()
    try:
        config = AutoConfig.from_pretrained(name_or_folder, local_files_only=offline, trust_remote_code=False)
        kind = str(config.model_type)
        if kind not in TRAINED_ON:
            raise TeacherError(f"{name_or_folder} is a {kind!r} model: proposers are {', '.join(TRAINED_ON)}")
        processor = AutoProcessor.from_pretrained(name_or_folder, local_files_only=offline, trust_remote_code=False)
        model = AutoModelForZeroShotObjectDetection.from_pretrained(
            name_or_folder, local_files_only=offline, trust_remote_code=False, use_safetensors=True
        )
    except TeacherError:
        raise
    except Exception as error:  # hub, network, JSON and weight errors share no base class
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise TeacherError(
            f"cannot load the proposer hf:{name_or_folder} ({line}): give a local folder with config.json, "
            "the processor's files and model.safetensors, or a hub name that this machine can reach"
        ) from None
    make = Owlv2Proposer if kind == "owlv2" else GroundingDinoProposer
    return make(
        model,
        processor,
        name=f"hf:{name_or_folder}",
        trained_on=trained_on or TRAINED_ON[kind],
        device=device,
        precision=precision,
    )


def _equally_large(images: Sequence[np.ndarray]) -> list[list[int]]:
    """Indices of images that can share a batch without padding."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for n, image in enumerate(images):
        groups.setdefault(image.shape, []).append(n)
    return list(groups.values())


def _best(boxes_B4: Tensor, scores_B: Tensor) -> Proposals:
    order = scores_B.sort(descending=True, stable=True).indices[:BOXES_KEPT]
    return Proposals(boxes_xyxy=boxes_B4[order], scores=scores_B[order])
