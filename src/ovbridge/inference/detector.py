"""`Detector`: load a checkpoint, give pictures and names, get boxes.

Legend: K names, D embedding width.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector import (
    DetectorMetadata,
    RawDetections,
    Search,
    TwoStageDetector,
    load_detector,
    to_original_size,
)
from ovbridge.detector.postprocess import RowClasses
from ovbridge.device import DetectionPrecision, Precision, autocast, default_device
from ovbridge.errors import ConfigError, OVBridgeError, TeacherError, VocabularyError
from ovbridge.images import resize_pixels, resized_size
from ovbridge.inference.encoders import ImageEncoder, TextEncoder
from ovbridge.inference.hub import push_checkpoint
from ovbridge.inference.picture_boxes import box_scale, check_boxes, picture_size
from ovbridge.inference.pictures import ImageLike, Pixels, check_several, picture_pixels, pixels_digest
from ovbridge.inference.queries import Query, parse_queries
from ovbridge.inference.sources import BUILTIN, CHECKPOINT_NAME, checkpoint_path
from ovbridge.inference.tiling import Tiling, merge_tiles
from ovbridge.structures import Detections, Proposals

PAPER_SIZE = (800, 1333)
"""Short side and longest side at detection where the checkpoint does not name others (`extra["test_size"]`)."""

Examples = Mapping[str, Sequence[ImageLike]]
"""Example crops of each class, by its name."""

_SAME_ENCODER_COSINE = 0.98
_REMEMBERED_NAMES = 10_000


@dataclass(frozen=True, kw_only=True)
class _QueryBank:
    """The classes of one call as the model takes them."""

    text_KD: Tensor  # noqa: N815 - dense-maths suffix
    """[K, D], one row a word."""
    example_ED: Tensor | None  # noqa: N815 - dense-maths suffix
    """[E, D], one row a class with examples."""
    rows: RowClasses
    """Which class each row is, words first."""
    lowest_threshold: float
    """Of all classes."""


class Detector:
    """An open-vocabulary detector: `Detector.load("detector.safetensors").detect("photo.jpg", ["red mug"])`."""

    def __init__(
        self,
        model: TwoStageDetector,
        metadata: DetectorMetadata,
        *,
        device: torch.device | str | None = None,
        text_encoder: TextEncoder | None = None,
        precision: DetectionPrecision = "fp32",
    ) -> None:
        if precision not in get_args(DetectionPrecision):
            raise ConfigError(f"there is no precision {precision!r}: choose {', '.join(get_args(DetectionPrecision))}")
        self.metadata = metadata
        self._precision = precision
        self._model = model.to(_usable_device(device)).eval()
        self._encoder = text_encoder
        self._encoder_checked = False
        self._stored_rows = dict(zip(metadata.names, model.roi_head.classifier.text_KD.cpu(), strict=True))
        self._encoded_rows: dict[str, Tensor] = {}
        self._example_rows: dict[bytes, Tensor] = {}
        self._short_side, self._long_side = metadata.test_size or PAPER_SIZE

    @classmethod
    def load(
        cls,
        source: str | Path = BUILTIN,
        device: torch.device | str | None = None,
        *,
        text_encoder: TextEncoder | None = None,
        precision: DetectionPrecision = "fp32",
    ) -> Detector:
        """Read a checkpoint.

        Args:
            source: a `.safetensors` of ours, a folder that holds `detector.safetensors`, "hf://owner/name", or
                "builtin", the detector of the built-in world that ships with the package.
            device: where to compute; by default the GPU if there is one.
            text_encoder: for names outside the stored vocabulary; by default the one that the checkpoint names is
                loaded when such a name is first asked for.
            precision: fp32, the same detections on every machine; bf16, about half the time where the hardware has
                it; mixed, the best detections of fp32 in little more (maps, proposals and the best regions in
                fp32); auto, bf16 where the hardware has it.

        Raises:
            CheckpointError: nothing there, or not a checkpoint of ours. ConfigError: no such device or precision.
        """
        model, metadata = load_detector(checkpoint_path(source))
        return cls(model, metadata, device=device, text_encoder=text_encoder, precision=precision)

    @property
    def model(self) -> TwoStageDetector:
        """The network itself, in eval mode."""
        return self._model

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary stored in the checkpoint."""
        return self.metadata.names

    def detect(
        self,
        image: ImageLike,
        names: Sequence[str | Query] | None = None,
        *,
        like: Examples | None = None,
        score_threshold: float = 0.05,
        max_detections: int = 100,
        tiling: Tiling | None = None,
    ) -> Detections:
        """Find things by name in one picture.

        Args:
            image: a file, a Pillow image, or an array [H, W, 3] (or grey [H, W]) uint8 in RGB order.
            names: what to look for, any words; None takes the stored vocabulary. "sofa|couch" is one class under
                two words, "mug=0.4" has a threshold of its own.
            like: example crops of further classes, by name; under a name of `names` they stand beside its words.
            score_threshold: only scores above it, in [0, 1].
            max_detections: the best so many.
            tiling: look at a large picture tile by tile, and once at the whole of it.

        Returns:
            Detections, best first; boxes in pixels of the picture given (upright, where EXIF says it is turned).

        Raises:
            DataError: the picture cannot be read. VocabularyError: a name is given twice, or there is none.
            TeacherError: a name is new and its text encoder cannot be loaded.
        """
        if tiling is None:
            return self.detect_batch(
                [image], names, like=like, score_threshold=score_threshold, max_detections=max_detections
            )[0]
        pixels = picture_pixels(image)
        if like:
            like = _with_pixels(like)  # Read once, not for every tile.
        whole = (0, 0, pixels.shape[1], pixels.shape[0])
        tiles = list(dict.fromkeys([whole, *tiling.boxes(*picture_size(pixels))]))
        parts = [
            self.detect_batch(
                [pixels[top:bottom, left:right]],
                names,
                like=like,
                score_threshold=score_threshold,
                max_detections=max_detections,
            )[0]
            for left, top, right, bottom in tiles
        ]
        return merge_tiles(parts, tiles, picture_size(pixels), max_detections=max_detections)

    def queries_for(self, names: Sequence[str]) -> list[Query] | None:
        """What to ask for to get a data set's classes in its own order; None where the checkpoint has them so.

        By name, so that another order of classes cannot shift the columns, and as queries, because a class may be
        called "on|off" or "pH=7".
        """
        return None if self.names == tuple(names) else [Query(name=name, words=(name,)) for name in names]

    def detect_batch(
        self,
        images: Sequence[ImageLike],
        names: Sequence[str | Query] | None = None,
        *,
        like: Examples | None = None,
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> list[Detections]:
        """`detect` for several pictures of any sizes together; memory grows with their number."""
        if not 0 <= score_threshold <= 1:
            raise ConfigError(f"score_threshold is {score_threshold}: give a number from 0 to 1")
        if max_detections < 1:
            raise ConfigError(f"max_detections is {max_detections}: give at least 1")
        check_several(images, "images")
        queries = None if names is None else parse_queries(names, self._stored_rows)
        crops = _with_pixels(like or {})
        if crops:
            queries = _with_examples(queries or (), crops)
        bank = None if queries is None else self._query_bank(queries, crops, score_threshold)
        if len(images) == 0:
            return []
        originals = [picture_pixels(image) for image in images]
        resized = [self.resize(pixels) for pixels in originals]
        postprocess = replace(
            self._model.config.postprocess,
            score_threshold=score_threshold if bank is None else bank.lowest_threshold,
            max_detections=max_detections,
        )
        search = Search(
            text_bank_KD=None if bank is None else bank.text_KD,
            example_ED=None if bank is None else bank.example_ED,
            rows=None if bank is None else bank.rows,
            postprocess=postprocess,
        )
        found = self.detect_resized(resized, [search] * len(resized))
        wanted = self.names if queries is None else tuple(query.name for query in queries)
        return [
            _as_detections(to_original_size(raw, picture_size(small), picture_size(original)), wanted)
            for raw, small, original in zip(found, resized, originals, strict=True)
        ]

    def push_to_hub(
        self,
        repository: str,
        *,
        token: str | None = None,
        results: Mapping[str, Any] | str | Path | None = None,
        private: bool = False,
    ) -> str:
        """Publish this detector as "owner/name" on the hub, with a model card; returns the address.

        Args:
            repository: "owner/name", made if absent.
            token: with the right to write there; by default the one of the hub's client.
            results: what `ovbridge evaluate` wrote (`results.json` or its content): the card states it.
            private: whether a new repository is private.

        Raises:
            CheckpointError: the client is not installed, or the hub refuses.
        """
        return push_checkpoint(
            self._model,
            self.metadata,
            repository,
            filename=CHECKPOINT_NAME,
            results=results,
            token=token,
            private=private,
        )

    def propose(self, image: ImageLike, count: int) -> Proposals:
        """The `count` best class-agnostic boxes of the region proposal network, in pixels of the picture given."""
        if count < 1:
            raise ConfigError(f"count is {count}: ask for at least one box")
        original = picture_pixels(image)
        small = self.resize(original)
        found = self._model.propose([self._input(small)], count)[0]
        return Proposals(
            boxes_xyxy=found.boxes_xyxy.float().cpu() / box_scale(small, original), scores=found.scores.float().cpu()
        )

    def embed_regions(self, image: ImageLike, boxes_xyxy: Tensor) -> Tensor:
        """[N, D] unit embeddings of given boxes [N, 4] (pixels of the picture), as they are compared with names.

        Raises DataError for a box without area inside the picture.
        """
        original = picture_pixels(image)
        check_boxes(boxes_xyxy, *picture_size(original))
        small = self.resize(original)
        boxes = boxes_xyxy.float() * box_scale(small, original)
        return self._model.region_embeddings([self._input(small)], [boxes])[0].float().cpu()

    def detect_resized(
        self, images_HW3: Sequence[np.ndarray[Any, Any]], searches: Sequence[Search]
    ) -> list[RawDetections]:
        """The network on pictures that `resize` gave, each with a search of its own, in this detector's precision.

        Boxes are in pixels of the pictures given; `detect_batch` is this with reading, resizing and names around it.
        """
        precision: Precision = "bf16" if self._precision == "mixed" else self._precision
        found: dict[int, RawDetections] = {}
        with autocast(self._model.device, precision):
            for group in self.passes(images_HW3):
                raw = self._model.detect_each(
                    [self._input(images_HW3[i]) for i in group],
                    [searches[i] for i in group],
                    mixed=self._precision == "mixed",
                )
                found |= dict(zip(group, raw, strict=True))
        return [found[i] for i in range(len(images_HW3))]

    def passes(self, resized_HW3: Sequence[np.ndarray[Any, Any]]) -> list[list[int]]:
        """Positions of the pictures that may share a pass: those of one padded size.

        Padding moves detections: in the company of larger pictures a picture would give other results than alone.
        """
        alike: dict[tuple[int, int], list[int]] = {}
        for i, pixels in enumerate(resized_HW3):
            alike.setdefault(self.padded_size(pixels), []).append(i)
        return list(alike.values())

    def padded_size(self, resized_HW3: np.ndarray[Any, Any]) -> tuple[int, int]:
        """Height and width to which the network pads a picture that comes alone."""
        multiple = max(self._model.config.pixels.size_divisibility, 1)
        height, width = picture_size(resized_HW3)
        return -(-height // multiple) * multiple, -(-width // multiple) * multiple

    def _input(self, pixels_HW3: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(pixels_HW3).permute(2, 0, 1).to(self._model.device)

    def resize(self, pixels_HW3: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The picture at the size that the checkpoint was made for."""
        height, width = picture_size(pixels_HW3)
        size = resized_size(height, width, short_side=self._short_side, long_side=self._long_side)
        return resize_pixels(pixels_HW3, size)

    def text_rows(self, names: Sequence[str]) -> Tensor:
        """[K, D] unit text embeddings: stored rows where there are, the text encoder's for the rest."""
        if len(names) == 0:
            return self._model.roi_head.classifier.text_KD[:0].cpu()
        absent = [name for name in names if name not in self._stored_rows and name not in self._encoded_rows]
        if absent:
            if len(self._encoded_rows) + len(absent) > _REMEMBERED_NAMES:
                self._encoded_rows.clear()
                absent = [name for name in names if name not in self._stored_rows]
            self._encoded_rows.update(zip(absent, self._encode(absent), strict=True))
        return torch.stack(
            [self._stored_rows[name] if name in self._stored_rows else self._encoded_rows[name] for name in names]
        )

    def example_row(self, crops: Sequence[ImageLike]) -> Tensor:
        """[D] unit embedding of a class given by example crops: the mean of their unit CLIP embeddings.

        Raises TeacherError if the encoder that the checkpoint names cannot be loaded or embeds no pictures.
        """
        pixels = _crop_pixels(crops, "the class")
        encoder = self._checked_encoder("the examples")
        if not isinstance(encoder, ImageEncoder):
            raise TeacherError(f"the encoder given embeds no pictures: give {self.metadata.text_encoder!r}")
        units = F.normalize(encoder.embed_crops(pixels).float(), dim=1)
        return F.normalize(units.mean(dim=0), dim=0).cpu()

    def _query_bank(
        self, queries: Sequence[Query], like: Mapping[str, Sequence[Pixels]], score_threshold: float
    ) -> _QueryBank:
        words = list(dict.fromkeys(word for query in queries for word in query.words))
        row_of = dict(zip(words, self.text_rows(words), strict=True)) if words else {}
        thresholds = [score_threshold if q.score_threshold is None else q.score_threshold for q in queries]
        owners = [i for i, query in enumerate(queries) for _ in query.words]
        texts = [row_of[word] for query in queries for word in query.words]
        examples = [self._remembered_example(like[query.name]) for query in queries if query.name in like]
        owners += [i for i, query in enumerate(queries) if query.name in like]
        device = self._model.device
        return _QueryBank(
            text_KD=torch.stack(texts) if texts else torch.zeros(0, self._model.roi_head.classifier.text_KD.shape[1]),
            example_ED=torch.stack(examples) if examples else None,
            rows=RowClasses(
                class_ids_K=torch.tensor(owners, device=device),
                thresholds_K=torch.tensor([thresholds[i] for i in owners], device=device),
            ),
            lowest_threshold=min(thresholds),
        )

    def _remembered_example(self, crops: Sequence[Pixels]) -> Tensor:
        # The same examples come with every picture and every tile: they are embedded once.
        key = pixels_digest(crops)
        row_D = self._example_rows.get(key)
        if row_D is None:
            row_D = self.example_row(crops)
            if len(self._example_rows) >= _REMEMBERED_NAMES:
                self._example_rows.clear()
            self._example_rows[key] = row_D
        return row_D

    def _encode(self, names: Sequence[str]) -> Tensor:
        encoder = self._checked_encoder(", ".join(map(repr, names)))
        return F.normalize(encoder.embed_names(names, self.metadata.templates).embeddings_KD, dim=1).cpu()

    def _checked_encoder(self, wanted: str) -> TextEncoder:
        if self._encoder is None:
            self._encoder = _named_encoder(self.metadata.text_encoder, wanted)
        if not self._encoder_checked:
            self._check_encoder(self._encoder)
            self._encoder_checked = True
        return self._encoder

    def _check_encoder(self, encoder: TextEncoder) -> None:
        """Refuse an encoder that does not give a stored name its stored embedding: its scores would mean nothing."""
        name, stored_D = next(iter(self._stored_rows.items()))
        row_D = encoder.embed_names([name], self.metadata.templates).embeddings_KD[0].cpu()
        if len(row_D) != len(stored_D) or float(F.cosine_similarity(row_D, stored_D, dim=0)) < _SAME_ENCODER_COSINE:
            raise VocabularyError(
                f"the text encoder given does not agree with the checkpoint on {name!r}: "
                f"give {self.metadata.text_encoder!r}, which made its vocabulary"
            )


def _named_encoder(encoder_id: str, wanted: str) -> TextEncoder:
    # Teachers are heavy and training never needs them here: imported only when a new name is asked for.
    from ovbridge.teachers.clip import load_clip

    try:
        return load_clip(encoder_id.removeprefix("open_clip:"))
    except OVBridgeError as error:
        raise TeacherError(
            f"no stored text embedding for {wanted}, and the checkpoint's text encoder "
            f"{encoder_id!r} cannot be loaded ({error}): use names of the stored vocabulary or give a text encoder"
        ) from None


def _usable_device(device: torch.device | str | None) -> torch.device:
    try:
        wanted = default_device() if device is None else torch.device(device)
        torch.zeros(1, device=wanted).item()
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!s} cannot be used ({str(error).splitlines()[0]}): try 'cpu'") from None
    return wanted


def _with_pixels(like: Examples) -> dict[str, list[Pixels]]:
    """`like` with its crops read; raises VocabularyError for a class without any."""
    return {name: _crop_pixels(crops, repr(name)) for name, crops in like.items()}


def _crop_pixels(crops: Sequence[ImageLike], what: str) -> list[Pixels]:
    check_several(crops, f"the example of {what}")
    if len(crops) == 0:
        raise VocabularyError(f"there is no example crop for {what}: give at least one picture")
    return [picture_pixels(crop) for crop in crops]


def _with_examples(queries: Sequence[Query], like: Iterable[str]) -> tuple[Query, ...]:
    """`queries` and a class without words for each example of another name."""
    known = {query.name for query in queries}
    return (*queries, *(Query(name=name, words=()) for name in like if name not in known))


def _as_detections(found: RawDetections, names: tuple[str, ...]) -> Detections:
    return Detections(
        boxes_xyxy=found.boxes_xyxy.float().cpu(),
        scores=found.scores.float().cpu(),
        class_ids=found.class_ids.cpu(),
        names=names,
        masks=None if found.masks is None else found.masks.cpu(),
    )
