"""Training data of MAVL: images in memory, their objects, and texts that mean some of them.

Legend: N images, G objects of an image, T texts, P token positions.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Tokenizer

from ovbridge.errors import DataError
from ovbridge.teachers.mavl.objective import ImageTargets, TextTargets
from ovbridge.teachers.mavl.text import UNKNOWN, pad_tokens
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, class_query

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

_MIRROR = np.array([-1, 1, 1, 1], dtype=np.float32)
_MIRROR_SHIFT = np.array([1, 0, 0, 0], dtype=np.float32)
_NO_BOX = np.array([0.5, 0.5, 1.0, 1.0], dtype=np.float32)


@dataclass(frozen=True, kw_only=True)
class GroundedImage:
    """One image with the objects that texts may mean."""

    file_name: str
    """Relative to the image folder."""
    width: int
    """Pixels."""
    height: int
    """Pixels."""
    boxes_cxcywh: np.ndarray
    """[G, 4] float32 in [0, 1] of the image."""
    nouns: np.ndarray
    """[G] int64, indices into `GroundedData.nouns`."""
    phrases: tuple[str, ...]
    """What each object is called here, for example "a small red mug"."""


@dataclass(frozen=True, kw_only=True)
class GroundedData:
    """A grounded data set."""

    images: tuple[GroundedImage, ...]
    """The images that may be learned from."""
    nouns: tuple[tuple[str, ...], ...]
    """Name and synonyms of each noun."""
    roles: tuple[str, ...]
    """The role of each noun."""
    dropped: int
    """Images left out because they show an excluded noun or a crowd."""


def load_grounded(annotations: Path, *, exclude_roles: Sequence[str] = ()) -> GroundedData:
    """Read a COCO instances file; images that show an excluded role or a crowd are left out altogether.

    Categories may carry "role" and "synonyms", annotations "phrase". Raises DataError where the file is not COCO's.
    """
    try:
        record = json.loads(annotations.read_text())
        categories, images, objects = record["categories"], record["images"], record["annotations"]
    except FileNotFoundError as error:
        raise DataError(f"{annotations} does not exist") from error
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{annotations} is not a COCO instances file ({error!r})") from error
    kept = [c for c in sorted(categories, key=lambda c: c["id"]) if c.get("role", "base") not in exclude_roles]
    column = {c["id"]: k for k, c in enumerate(kept)}
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in images}
    for item in objects:
        if item["image_id"] not in by_image:
            raise DataError(
                f"{annotations}: annotation {item.get('id')} names image {item['image_id']}, which is not there"
            )
        by_image[item["image_id"]].append(item)
    grounded = []
    for image in images:
        items = by_image[image["id"]]
        if all(item["category_id"] in column and not item.get("iscrowd") for item in items):
            grounded.append(_grounded_image(image, items, column, kept))
    if not any(len(image.boxes_cxcywh) for image in grounded):
        raise DataError(f"{annotations}: no image is left without {'/'.join(exclude_roles) or 'crowd'} objects")
    return GroundedData(
        images=tuple(grounded),
        nouns=tuple((c["name"], *c.get("synonyms", ())) for c in kept),
        roles=tuple(c.get("role", "base") for c in kept),
        dropped=len(images) - len(grounded),
    )


def _grounded_image(
    image: dict[str, Any], items: list[dict[str, Any]], column: dict[int, int], categories: list[dict[str, Any]]
) -> GroundedImage:
    width, height = image["width"], image["height"]
    items = [item for item in items if item["bbox"][2] > 0 and item["bbox"][3] > 0]
    xywh = np.array([item["bbox"] for item in items], dtype=np.float64).reshape(-1, 4)
    boxes = np.concatenate([xywh[:, :2] + xywh[:, 2:] / 2, xywh[:, 2:]], axis=1) / (width, height, width, height)
    nouns = np.array([column[item["category_id"]] for item in items], dtype=np.int64)
    return GroundedImage(
        file_name=image["file_name"],
        width=width,
        height=height,
        boxes_cxcywh=boxes.astype(np.float32),
        nouns=nouns,
        phrases=tuple(i.get("phrase") or f"a {categories[k]['name']}" for i, k in zip(items, nouns, strict=True)),
    )


def vocabulary_texts(data: GroundedData) -> Iterator[str]:
    """Every text that training can show, for the tokenizer."""
    for _ in range(2):
        yield from CLASS_AGNOSTIC_QUERIES
        yield "and"
    for names in data.nouns:
        yield from (class_query(name) for name in names)
    for image in data.images:
        yield from image.phrases


def resized_hw(height: int, width: int, short_side: int) -> tuple[int, int]:
    """Rows and columns after resizing the short side; the long side is truncated to whole pixels (torchvision)."""
    if height <= width:
        return short_side, int(short_side * width / height)
    return int(short_side * height / width), short_side


def resize(image: np.ndarray, short_side: int) -> np.ndarray:
    """Pillow's antialiased bilinear resize of [H, W, 3] uint8 pixels, as the released inference does."""
    rows, columns = resized_hw(image.shape[0], image.shape[1], short_side)
    return np.asarray(Image.fromarray(image).resize((columns, rows), Image.Resampling.BILINEAR))


def batch_pixels(images: Sequence[np.ndarray]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Normalised pixels [N, 3, H, W] and padding mask [N, H, W], None where all images have one size."""
    mean = torch.tensor(IMAGENET_MEAN).view(3, 1, 1)
    std = torch.tensor(IMAGENET_STD).view(3, 1, 1)
    rows, columns = max(i.shape[0] for i in images), max(i.shape[1] for i in images)
    pixels = torch.zeros(len(images), 3, rows, columns)
    padding = torch.ones(len(images), rows, columns, dtype=torch.bool)
    for n, image in enumerate(images):
        h, w = image.shape[:2]
        pixels[n, :, :h, :w] = (torch.tensor(image).permute(2, 0, 1).float() / 255.0 - mean) / std
        padding[n, :h, :w] = False
    return pixels, padding if bool(padding.any()) else None


def jitter(pixels: np.ndarray, random: np.random.Generator, strength: float) -> np.ndarray:
    """Random brightness, contrast and saturation, each within 1 +- strength."""
    brightness, contrast, saturation = random.uniform(1 - strength, 1 + strength, 3)
    x = pixels.astype(np.float32) * np.float32(brightness)
    grey = x.mean(axis=2, keepdims=True)
    x = grey + (x - grey) * np.float32(saturation)
    x = (x - grey.mean()) * np.float32(contrast) + grey.mean()
    varied: np.ndarray = np.clip(x, 0, 255).astype(np.uint8)
    return varied


def zoom(
    image: GroundedImage, pixels: np.ndarray, random: np.random.Generator, config: SampleConfig
) -> tuple[GroundedImage, np.ndarray]:
    """A random window that holds the middle of an object, enlarged to the picture's size, with what it shows."""
    height, width = pixels.shape[:2]
    side = 1.0 / random.uniform(1.0, config.largest_zoom)
    x, y = image.boxes_cxcywh[random.integers(len(image.boxes_cxcywh)), :2]
    left, top = (float(np.clip(v - side * random.uniform(0.3, 0.7), 0.0, 1.0 - side)) for v in (x, y))
    corner = np.array([left, top, left, top])
    centre, half = image.boxes_cxcywh[:, :2], image.boxes_cxcywh[:, 2:] / 2
    corners = (np.concatenate([centre - half, centre + half], axis=1) - corner) / side
    inside = np.clip(corners, 0.0, 1.0)
    sizes, whole = inside[:, 2:] - inside[:, :2], corners[:, 2:] - corners[:, :2]
    kept = np.flatnonzero(sizes.prod(axis=1) >= config.smallest_rest * whole.prod(axis=1))
    boxes = np.concatenate([inside[:, :2] + sizes / 2, sizes], axis=1)[kept]
    window = Image.fromarray(pixels).resize(
        (width, height),
        Image.Resampling.BILINEAR,
        box=(left * width, top * height, (left + side) * width, (top + side) * height),
    )
    shown = replace(
        image,
        boxes_cxcywh=boxes.astype(np.float32),
        nouns=image.nouns[kept],
        phrases=tuple(image.phrases[k] for k in kept),
    )
    return shown, np.asarray(window)


@dataclass(frozen=True, kw_only=True)
class Batch:
    """One training step's input."""

    pixels: torch.Tensor
    padding: torch.Tensor | None
    targets: ImageTargets
    text: TextTargets
    token_ids: torch.Tensor
    """[U, W] distinct texts: first the batch's, then one per noun."""
    token_padding: torch.Tensor
    """[U, W]."""
    text_index: torch.Tensor
    """Row of `token_ids` of each (image, text) pair."""
    noun_index: torch.Tensor
    """Row of `token_ids` of each noun."""


@dataclass(frozen=True, kw_only=True)
class SampleConfig:
    """How texts and pixels are varied."""

    texts_per_image: int = 2
    """Every other text is "every noun", the rest are class-agnostic queries and grounded phrases."""
    agnostic_rate: float = 0.6
    """How many of that rest are class-agnostic queries."""
    unknown_rate: float = 0.12
    """How often a noun is replaced by `<unk>`: "every <unk>" then means all objects."""
    absent_rate: float = 0.15
    """How often "every noun" asks for a noun that is not in the image."""
    jitter: float = 0.25
    """Strength of the colour jitter."""
    zoom_rate: float = 0.5
    """How often a picture is replaced by a window of it, so that large objects are seen too."""
    largest_zoom: float = 2.5
    """The smallest window is smaller than the picture by this factor."""
    smallest_rest: float = 0.6
    """An object stays a target if at least this part of its box is in the window."""


class BatchMaker:
    """Builds the batches of an epoch; every random choice follows from (seed, step)."""

    def __init__(
        self,
        data: GroundedData,
        tokenizer: Tokenizer,
        pixels: Callable[[int], np.ndarray],
        *,
        token_positions: int,
        config: SampleConfig,
        seed: int,
    ) -> None:
        self._data, self._tokenizer, self._pixels = data, tokenizer, pixels
        self._positions, self._config, self._seed = token_positions, config, seed
        unknown = tokenizer.token_to_id(UNKNOWN)
        assert unknown is not None
        self._unknown: int = unknown
        self._and = self._words("and")

    def epoch(self, number: int, batch_size: int) -> list[list[int]]:
        """Image indices of each batch; landscape, portrait and square images are not mixed. A rest is left out."""
        random = np.random.default_rng((self._seed, 1, number))
        waiting: dict[int, list[int]] = {}
        batches = []
        for index in random.permutation(len(self._data.images)).tolist():
            image = self._data.images[index]
            bucket = waiting.setdefault(int(np.sign(image.width - image.height)), [])
            bucket.append(index)
            if len(bucket) == batch_size:
                batches.append(bucket.copy())
                bucket.clear()
        return batches or [[index for bucket in waiting.values() for index in bucket]]

    def batch(self, indices: Sequence[int], step: int) -> Batch:
        """The batch of these images at this step."""
        random = np.random.default_rng((self._seed, 2, step))
        rows: dict[tuple[int, ...], int] = {}
        shown: list[GroundedImage] = []
        images, boxes, pairs = [], [], []
        for n, index in enumerate(indices):
            image, pixels = self._data.images[index], self._pixels(index)
            if len(image.nouns) and random.random() < self._config.zoom_rate:
                image, pixels = zoom(image, pixels, random, self._config)
            shown.append(image)
            cxcywh = image.boxes_cxcywh
            if random.random() < 0.5:
                pixels = pixels[:, ::-1]
                cxcywh = cxcywh * _MIRROR + _MIRROR_SHIFT
            images.append(jitter(pixels, random, self._config.jitter))
            boxes.append(cxcywh)
            for ids, spans in self._texts(image, random):
                pairs.append((n, rows.setdefault(ids, len(rows)), spans))
        noun_rows = []
        for names in self._data.nouns:
            ids = self._sentence([self._words(class_query(names[random.integers(len(names))]))])
            noun_rows.append(rows.setdefault(ids, len(rows)))
        pixels_tensor, padding = batch_pixels(images)
        token_ids, token_padding = pad_tokens(list(rows))
        most = max(1, *(len(b) for b in boxes))
        tokens_TGP = np.zeros((len(pairs), most, self._positions), dtype=np.float32)
        for t, (_, _, spans) in enumerate(pairs):
            for g, (start, stop) in spans.items():
                tokens_TGP[t, g, start:stop] = 1.0 / (stop - start)
        boxes_NG4 = np.tile(_NO_BOX, (len(boxes), most, 1))
        nouns_NG = np.zeros((len(boxes), most), dtype=np.int64)
        for n, (image, b) in enumerate(zip(shown, boxes, strict=True)):
            boxes_NG4[n, : len(b)] = b
            nouns_NG[n, : len(b)] = image.nouns
        return Batch(
            pixels=pixels_tensor,
            padding=padding,
            targets=ImageTargets(
                boxes=torch.from_numpy(boxes_NG4),
                nouns=torch.from_numpy(nouns_NG),
                counts=tuple(len(b) for b in boxes),
            ),
            text=TextTargets(image_of_text=torch.tensor([n for n, _, _ in pairs]), tokens=torch.from_numpy(tokens_TGP)),
            token_ids=token_ids,
            token_padding=token_padding,
            text_index=torch.tensor([row for _, row, _ in pairs]),
            noun_index=torch.tensor(noun_rows),
        )

    def _words(self, text: str) -> tuple[int, ...]:
        return tuple(self._tokenizer.encode(text, add_special_tokens=False).ids)

    def _sentence(self, parts: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
        """<s> parts </s>, cut to the token positions that a box can point to."""
        words = [word for part in parts for word in part]
        return (0, *words[: self._positions - 3], 2)

    def _texts(
        self, image: GroundedImage, random: np.random.Generator
    ) -> Iterator[tuple[tuple[int, ...], dict[int, tuple[int, int]]]]:
        """Token ids and, for each object that the text means, the token span that names it."""
        for k in range(self._config.texts_per_image):
            if k % 2 == 0:
                yield self._every_noun(image, random)
            elif random.random() < self._config.agnostic_rate:
                yield self._all_objects(image, random)
            else:
                yield self._phrases(image, random)

    def _all_objects(
        self, image: GroundedImage, random: np.random.Generator
    ) -> tuple[tuple[int, ...], dict[int, tuple[int, int]]]:
        words = self._words(CLASS_AGNOSTIC_QUERIES[random.integers(len(CLASS_AGNOSTIC_QUERIES))])
        return self._sentence([words]), dict.fromkeys(range(len(image.nouns)), (1, 1 + len(words)))

    def _every_noun(
        self, image: GroundedImage, random: np.random.Generator
    ) -> tuple[tuple[int, ...], dict[int, tuple[int, int]]]:
        if len(image.nouns) and random.random() >= self._config.absent_rate:
            noun = int(random.choice(image.nouns))
        else:
            noun = int(random.integers(len(self._data.nouns)))
        names = self._data.nouns[noun]
        words = self._words(class_query(names[random.integers(len(names))]))
        if random.random() < self._config.unknown_rate:
            words = (*words[:1], *[self._unknown] * (len(words) - 1))
            meant = list(range(len(image.nouns)))
        else:
            meant = np.flatnonzero(image.nouns == noun).tolist()
        return self._sentence([words]), dict.fromkeys(meant, (1, 1 + len(words)))

    def _phrases(
        self, image: GroundedImage, random: np.random.Generator
    ) -> tuple[tuple[int, ...], dict[int, tuple[int, int]]]:
        """Up to three objects' phrases joined by "and"; every object that carries a phrase points to it."""
        distinct = sorted(set(image.phrases))
        if not distinct:
            return self._all_objects(image, random)
        chosen = random.permutation(len(distinct))[: 1 + random.integers(3)]
        parts: list[tuple[int, ...]] = []
        spans: dict[int, tuple[int, int]] = {}
        length = 1
        for phrase in (distinct[c] for c in chosen):
            words = self._words(phrase)
            if length + len(words) + 1 > self._positions - 2:
                break
            if parts:
                parts.append(self._and)
                length += len(self._and)
            parts.append(words)
            span = (length, length + len(words))
            spans |= {g: span for g, p in enumerate(image.phrases) if p == phrase}
            length += len(words)
        return self._sentence(parts), spans
