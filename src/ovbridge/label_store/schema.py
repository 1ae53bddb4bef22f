"""What one row of a label table holds, and how labelled images become rows.

Legend: N regions of an image, D embedding width. One row is one region (or one pseudo box), so that
plain Lance can search the embeddings. An image without any box, or one that could not be read, has a
single row with an empty box: every image that was worked on has exactly one row of rank 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from ovbridge.structures import ImageLabels, RegionTargets

Table = Literal["regions", "tags"]
"""regions: class-agnostic boxes with CLIP embeddings (RKD). tags: one box a known label (PIS)."""
Status = Literal["ok", "empty", "failed"]

ASKED = pa.field("asked", pa.list_(pa.string()))
"""The names that an image was asked for, in its row of rank 0. Stores of before it was noted lack the column."""

CAUSE_LENGTH = 200
"""Longer causes of failure are cut: they are grouped and shown, not parsed."""


@dataclass(frozen=True, kw_only=True)
class NamedBoxes:
    """The best box of each label of one image, by class name: column numbers are the reader's business."""

    names: tuple[str, ...]
    """[N] class names."""
    boxes_xyxy: torch.Tensor
    """[N, 4] float, pixels of the original image."""
    scores: torch.Tensor
    """[N] float in [0, 1]."""

    def __post_init__(self) -> None:
        n = len(self.names)
        if tuple(self.boxes_xyxy.shape) != (n, 4) or tuple(self.scores.shape) != (n,):
            raise ValueError(f"NamedBoxes: {n} names need boxes [{n}, 4] and scores [{n}]")

    def __len__(self) -> int:
        return len(self.names)


@dataclass(frozen=True, kw_only=True)
class LabelledImage:
    """The outcome for one image: its labels, or why there are none."""

    image_key: str
    """Path relative to the image folder, with forward slashes."""
    labels: RegionTargets | NamedBoxes | None
    """Boxes in pixels of the original image; None where the image failed."""
    cause: str | None = None
    """Why it failed; None where it did not."""
    asked: tuple[str, ...] | None = None
    """The names that its tags were asked for, sorted; None where nobody said, and for regions."""

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.cause is None):
            raise ValueError(f"{self.image_key}: give either labels or the cause of failure")

    @property
    def status(self) -> Status:
        """ok, empty (no box found) or failed."""
        if self.labels is None:
            return "failed"
        return "ok" if len(self.labels) else "empty"


def arrow_schema(table: Table, embedding_dim: int | None) -> pa.Schema:
    """Columns of `table`; `embedding_dim` is D for regions and None for tags."""
    fields = [
        pa.field("image_key", pa.string(), nullable=False),
        pa.field("rank", pa.int16(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("cause", pa.string()),
        pa.field("box_xyxy", pa.list_(pa.float32(), 4)),
        pa.field("score", pa.float32()),
    ]
    if table == "tags":
        fields += [pa.field("name", pa.string()), ASKED]
    else:
        # Half precision: 5 regions of 512 values in 5.1 kB. The relative error (5e-4) is far below what
        # the normalised loss of Eq. 1 can see.
        fields.append(pa.field("embedding", pa.list_(pa.float16(), embedding_dim or 1)))
    return pa.schema(fields)


def to_arrow(images: Sequence[LabelledImage], schema: pa.Schema) -> pa.Table:
    """Rows of `images`, those of one image side by side in order of rank."""
    counts = np.array([max(len(i.labels) if i.labels is not None else 0, 1) for i in images], dtype=np.int64)
    filled = np.repeat([i.status == "ok" for i in images], counts)
    labelled = [i.labels for i in images if i.labels is not None and len(i.labels)]
    columns = {
        "image_key": pa.array(np.repeat([i.image_key for i in images], counts).tolist(), pa.string()),
        "rank": pa.array(
            np.concatenate([np.arange(n, dtype=np.int16) for n in counts]) if len(images) else [], pa.int16()
        ),
        "status": pa.array(np.repeat([i.status for i in images], counts).tolist(), pa.string()),
        "cause": pa.array(
            [c for i, n in zip(images, counts, strict=True) for c in [i.cause and i.cause[:CAUSE_LENGTH]] * int(n)],
            pa.string(),
        ),
        "box_xyxy": _vectors([x.boxes_xyxy for x in labelled], filled, 4, np.float32),
        "score": pa.array(_spread([x.scores for x in labelled], filled, np.float32), mask=~filled),
    }
    if "name" in schema.names:
        names = iter([name for x in labelled if isinstance(x, NamedBoxes) for name in x.names])
        columns["name"] = pa.array([next(names) if is_filled else None for is_filled in filled], pa.string())
        asked = [a for i, n in zip(images, counts, strict=True) for a in [i.asked, *[None] * int(n - 1)]]
        columns[ASKED.name] = pa.array(asked, ASKED.type)
    else:
        dim = schema.field("embedding").type.list_size
        embeddings = [x.embeddings for x in labelled if isinstance(x, RegionTargets)]
        columns["embedding"] = _vectors(embeddings, filled, dim, np.float16)
    return pa.table([columns[name] for name in schema.names], schema=schema)


def _spread(parts: Sequence[torch.Tensor], filled: np.ndarray, dtype: type, width: int | None = None) -> np.ndarray:
    values: np.ndarray = np.zeros((len(filled),) if width is None else (len(filled), width), dtype=dtype)
    if parts:
        values[filled] = torch.cat(list(parts)).detach().cpu().float().numpy().astype(dtype)
    return values


def _vectors(parts: Sequence[torch.Tensor], filled: np.ndarray, width: int, dtype: type) -> pa.Array:
    values = _spread(parts, filled, dtype, width)
    return pa.FixedSizeListArray.from_arrays(pa.array(values.ravel()), width, mask=pa.array(~filled))


Columns = Mapping[str, np.ndarray]
"""Label columns by name, one entry a row: vectors as [rows, width]."""
Ranges = Mapping[str, tuple[int, int]]
"""Image key → (first row, number of rows)."""


def to_numpy(column: pa.ChunkedArray) -> np.ndarray:
    """A column without empty entries; fixed-size lists as [rows, width], strings as objects."""
    array = column.combine_chunks()
    array = pa.concat_arrays(array.chunks) if isinstance(array, pa.ChunkedArray) else array
    values: np.ndarray
    if pa.types.is_string(array.type):
        codes = array.dictionary_encode()
        words = np.array([*codes.dictionary.to_pylist(), None], dtype=object)
        values = words[codes.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)]
    elif pa.types.is_fixed_size_list(array.type):
        width = array.type.list_size
        flat = array.values.slice(array.offset * width, len(array) * width)
        values = flat.to_numpy(zero_copy_only=False).reshape(-1, width)
    else:
        values = array.to_numpy(zero_copy_only=False)
    return values


def read_regions(columns: Columns, ranges: Ranges) -> dict[str, RegionTargets]:
    """The regions of each image out of the rows of all."""
    counts = [count for _, count in ranges.values()]
    boxes, embeddings, scores = (
        torch.split(torch.from_numpy(columns[name].astype(np.float32)), counts)
        for name in ("box_xyxy", "embedding", "score")
    )
    return {
        key: RegionTargets(boxes_xyxy=b, embeddings=e, scores=s)
        for key, b, e, s in zip(ranges, boxes, embeddings, scores, strict=True)
    }


def read_tags(
    columns: Columns, ranges: Ranges, column_of: Mapping[str, int], min_score: float
) -> dict[str, ImageLabels]:
    """The pseudo boxes of each image whose names `column_of` knows and whose score is above `min_score`."""
    boxes, scores = (torch.from_numpy(columns[name].astype(np.float32)) for name in ("box_xyxy", "score"))
    class_ids = torch.tensor([column_of.get(name, -1) for name in columns["name"]], dtype=torch.int64)
    kept = (class_ids >= 0) & (scores > min_score)
    found = {}
    for key, (start, count) in ranges.items():
        part = slice(start, start + count)
        mine = kept[part]
        found[key] = ImageLabels(
            boxes_xyxy=boxes[part][mine], class_ids=class_ids[part][mine], scores=scores[part][mine]
        )
    return found
