"""Boxes that somebody proposed before, out of a file, as a proposer.

What can be read (`docs/guides/label.md` has the forms): our JSON, COCO results, COCO annotations, the pickles of
MAVL (one file of all images) and of the paper (a folder with one file an image). Boxes in pixels of the original image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from ovbridge.errors import DataError, TeacherError
from ovbridge.structures import Proposals
from ovbridge.teachers.plain_pickle import OpaqueTensor, read_plain_pickle
from ovbridge.teachers.protocol import UnknownImageError, class_in

RELEASED_TRAINING = (
    "the released MAVL, on LMDet: Flickr30k, MS-COCO/GQA and Visual Genome phrases, novel names included"
)
UNKNOWN_TRAINING = "not said: boxes from a file (say it with --trained-on)"
FORMS = "our JSON, COCO results or annotations, a MAVL pickle, or a folder of the paper's pickles"


@dataclass(frozen=True, kw_only=True)
class ImageBoxes:
    """The stored boxes of one image, best first."""

    boxes_xyxy: np.ndarray
    """[N, 4] float32, pixels of the original image."""
    scores: np.ndarray
    """[N] float32 in [0, 1]."""
    names: tuple[str, ...] | None = None
    """[N] what each box shows; None where nobody said."""


class StoredBoxes:
    """A proposer that remembers: class-agnostic queries get all boxes of an image, names those of that name."""

    def __init__(
        self,
        names: _StoredNames,
        read: Callable[[str], ImageBoxes],
        *,
        name: str,
        digest: str,
        trained_on: str,
        knows_names: bool,
    ) -> None:
        """`names` tell which stored image one is, by its path below the image folder; `read` gives its boxes."""
        self.name, self.digest, self.trained_on, self.knows_names = name, digest, trained_on, knows_names
        self._names, self._read = names, read

    def check_knows(self, image_keys: Sequence[str], max_missing: float = 1.0) -> None:
        """Raise DataError, before any work is done, if more than a share of the images is not stored, or all, or if
        two images would get the boxes of one."""
        owner: dict[str, str] = {}
        missing = []
        for key in image_keys:
            meant = self._names.meant_by(key)
            if len(meant) != 1:
                missing.append(key)
            elif _unsuffixed(other := owner.setdefault(meant[0], key)) != _unsuffixed(key):
                raise DataError(
                    f"{self.name} has boxes of one image {meant[0]} that {other} and {key} could both be: give it "
                    "their paths, or label a folder with only one of them"
                )
        if image_keys and len(missing) == len(image_keys):
            raise DataError(f"{self.name} has boxes of none of the images, for instance {missing[0]}: check the file")
        if len(missing) > max_missing * len(image_keys):
            raise DataError(
                f"{self.name} lacks {len(missing)} of {len(image_keys)} images (limit {max_missing:.0%}), for instance "
                f"{missing[0]}: give a folder with only those that it has, or --max-failed 1 to label these and note "
                "the others as failed"
            )

    def look_up(
        self, image_keys: Sequence[str], images: Sequence[np.ndarray], queries: Sequence[Sequence[str]]
    ) -> list[list[Proposals]]:
        """See `StoredProposer.look_up`; UnknownImageError for an image that is not stored fails it alone."""
        found = []
        for key, texts in zip(image_keys, queries, strict=True):
            meant = self._names.meant_by(key)
            if not meant:
                raise UnknownImageError("no boxes stored for this image")
            if len(meant) > 1:
                raise UnknownImageError("boxes of several images of this name in other folders are stored")
            stored = self._read(meant[0])
            found.append([self._answer(stored, class_in(text)) for text in texts])
        return found

    def _answer(self, stored: ImageBoxes, name: str | None) -> Proposals:
        chosen = np.arange(len(stored.boxes_xyxy))
        if name is not None:
            if stored.names is None:
                raise TeacherError(f"{self.name} does not say what its boxes show: use it for 'label regions'")
            chosen = np.array([i for i, n in enumerate(stored.names) if _plain(n) == _plain(name)], dtype=np.int64)
        return Proposals(
            boxes_xyxy=torch.from_numpy(stored.boxes_xyxy[chosen]), scores=torch.from_numpy(stored.scores[chosen])
        )


def load_stored_boxes(source: str, *, trained_on: str | None = None) -> StoredBoxes:
    """Boxes from "FILE", "FOLDER" or "FILE,ANNOTATIONS".

    ANNOTATIONS is the COCO file that says which image an id of COCO results means and what the category ids are
    called. Without it an image id means the file whose name is that number, as in COCO, and categories stay unnamed.

    Raises DataError where a file is missing or has none of the forms.
    """
    first, _, second = source.partition(",")
    path = Path(first)
    annotations = _Annotations.read(Path(second)) if second else None
    name = f"boxes:{source}"
    if path.is_dir():
        return _from_folder(path, annotations, name, trained_on)
    if not path.is_file():
        raise DataError(f"{path} does not exist: give {FORMS}")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if path.suffix.lower() in (".pkl", ".pickle"):
        content = read_plain_pickle(path)
        if not isinstance(content, dict) or not all(isinstance(k, str) for k in content):
            raise DataError(f"{path} is not a dictionary by image: give {FORMS}")
        images = {key: _from_pickled(value, annotations, f"{path}: {key}") for key, value in content.items()}
        declared = RELEASED_TRAINING
    else:
        images, declared = _from_json(_read_json(path), annotations, path)
    return StoredBoxes(
        _StoredNames(images),
        images.__getitem__,
        name=name,
        digest=digest,
        trained_on=trained_on or declared,
        knows_names=any(stored.names is not None for stored in images.values()),
    )


@dataclass(frozen=True, kw_only=True)
class _Annotations:
    file_of: Mapping[int, str]
    name_of: Mapping[int, str]

    @classmethod
    def read(cls, path: Path) -> _Annotations:
        record = _read_json(path)
        try:
            return cls(
                file_of={int(i["id"]): str(i["file_name"]) for i in record["images"]},
                name_of={int(c["id"]): str(c["name"]) for c in record.get("categories", ())},
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{path} is not a COCO annotation file ({error!r}): it needs images with id and file_name"
            ) from None


class _StoredNames:
    """Finds an image by its path, its name, its name without suffix, or the number that its name is."""

    def __init__(self, stored: Iterable[str], *, in_folders: bool = False) -> None:
        """`in_folders`: a stored name may have folders that the image's path does not."""
        self._stored = set(stored)
        self._in_folders: dict[str, list[str]] = {}
        for name in self._stored if in_folders else ():
            self._in_folders.setdefault(PurePosixPath(name).name, []).append(name)

    def meant_by(self, image_key: str) -> Sequence[str]:
        """The stored names that an image may go by: none, one, or several that differ in their folders."""
        for spelling in _spellings(image_key):
            if spelling in self._stored:
                return (spelling,)
            if spelling in self._in_folders:
                return self._in_folders[spelling]
        return ()


def _spellings(image_key: str) -> list[str]:
    path = PurePosixPath(image_key)
    stem = path.stem
    return [image_key, _unsuffixed(image_key), path.name, stem, *([str(int(stem))] if stem.isdecimal() else [])]


def _unsuffixed(image_key: str) -> str:
    return str(PurePosixPath(image_key).with_suffix(""))


def _from_folder(folder: Path, annotations: _Annotations | None, name: str, trained_on: str | None) -> StoredBoxes:
    """The paper's folders: read when asked for, one small pickle an image."""
    files = {p.relative_to(folder).with_suffix("").as_posix(): p for p in folder.rglob("*.pkl")}
    if not files:
        raise DataError(f"{folder} holds no .pkl: give {FORMS}")
    # The names and sizes stand for the contents: reading 118,000 files only to hash them would take minutes.
    by_name = files | {p.stem: p for p in files.values()}
    listing = sorted((key, file.stat().st_size) for key, file in by_name.items())

    def read(name: str) -> ImageBoxes:
        return _from_pickled(read_plain_pickle(files[name]), annotations, str(files[name]))

    return StoredBoxes(
        _StoredNames(files, in_folders=True),
        read,
        name=name,
        digest=hashlib.sha256(repr(listing).encode()).hexdigest(),
        trained_on=trained_on or RELEASED_TRAINING,
        knows_names=annotations is not None,
    )


def _from_pickled(value: Any, annotations: _Annotations | None, where: str) -> ImageBoxes:
    """One image of a released pickle.

    RKD: [(box, embedding), ...] best first, without scores, which become 1, 1 - 1/N, ... to keep the order.
    MAVL: (boxes, scores). PIS: {category id: ([box], [score])}. Others' proposals: array [N, 5].
    """
    if isinstance(value, dict):
        parts = [(_category(key, annotations), *_boxes_and_scores(pair, where)) for key, pair in value.items()]
        names = [name for name, boxes, _ in parts for _ in range(len(boxes))]
        return _ordered(
            [row for _, boxes, _ in parts for row in boxes], [s for _, _, scores in parts for s in scores], names, where
        )
    if isinstance(value, list) and all(isinstance(v, tuple) and len(v) == 2 for v in value):
        boxes = [box for box, _ in value]
        return _ordered(boxes, [1.0 - i / len(boxes) for i in range(len(boxes))], None, where)
    if isinstance(value, np.ndarray) and value.ndim == 2 and value.shape[1] == 5:
        return _ordered(value[:, :4], value[:, 4], None, where)
    return _ordered(*_boxes_and_scores(value, where), None, where)


def _boxes_and_scores(pair: Any, where: str) -> tuple[Any, Any]:
    if not isinstance(pair, tuple | list) or len(pair) != 2 or any(isinstance(p, OpaqueTensor) for p in pair):
        raise DataError(f"{where}: expected (boxes, scores), got a {type(pair).__name__}")
    return pair[0], pair[1]


def _category(key: object, annotations: _Annotations | None) -> str | None:
    if isinstance(key, str):
        return key
    return annotations.name_of.get(int(key)) if annotations is not None and isinstance(key, int) else None


def _from_json(content: Any, annotations: _Annotations | None, path: Path) -> tuple[dict[str, ImageBoxes], str]:
    try:
        if isinstance(content, list):
            return _from_results(content, annotations, path), UNKNOWN_TRAINING
        if isinstance(content, dict) and isinstance(content.get("images"), dict):
            images = {
                str(key): _ordered(
                    i["boxes"], i.get("scores", [1.0] * len(i["boxes"])), i.get("names"), f"{path}: {key}"
                )
                for key, i in content["images"].items()
            }
            return images, str(content.get("trained_on") or UNKNOWN_TRAINING)
        if isinstance(content, dict) and {"images", "annotations", "categories"} <= content.keys():
            own = _Annotations.read(path)
            return _from_results(content["annotations"], own, path), f"the annotations {path.name}"
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise DataError(f"{path} cannot be read as boxes ({error!r}): give {FORMS}") from None
    raise DataError(f"{path} holds no boxes: give {FORMS}")


def _from_results(
    records: Sequence[Mapping[str, Any]], annotations: _Annotations | None, path: Path
) -> dict[str, ImageBoxes]:
    """COCO results or annotations: xywh becomes xyxy; images that an annotation file lists may have no box."""
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    if annotations is not None:
        grouped = {file: [] for file in annotations.file_of.values()}
    for record in records:
        if record.get("iscrowd"):
            continue
        image = record["image_id"]
        grouped.setdefault(str(image) if annotations is None else annotations.file_of[int(image)], []).append(record)
    images = {}
    for key, found in grouped.items():
        corners = [[x, y, x + w, y + h] for x, y, w, h in (r["bbox"] for r in found)]
        names = [_category(r.get("category_id"), annotations) for r in found]
        images[key] = _ordered(corners, [r.get("score", 1.0) for r in found], names, f"{path}: {key}")
    return images


def _ordered(boxes: Any, scores: Any, names: Sequence[str | None] | None, where: str) -> ImageBoxes:
    try:
        boxes_N4 = np.asarray(boxes, dtype=np.float32).reshape(-1, 4)
        scores_N = np.asarray(scores, dtype=np.float32).reshape(-1)
    except (TypeError, ValueError):
        raise DataError(f"{where}: boxes must be four numbers each, scores one") from None
    if len(scores_N) != len(boxes_N4) or (names is not None and len(names) != len(boxes_N4)):
        raise DataError(f"{where}: {len(boxes_N4)} boxes, {len(scores_N)} scores: give one score and one name a box")
    if not np.isfinite(boxes_N4).all() or not ((scores_N >= 0) & (scores_N <= 1)).all():
        raise DataError(f"{where}: boxes must be finite and scores between 0 and 1")
    order = np.argsort(-scores_N, kind="stable")
    known = names is not None and any(name is not None for name in names)
    return ImageBoxes(
        boxes_xyxy=boxes_N4[order],
        scores=scores_N[order],
        names=tuple(str(names[i] or "") for i in order) if known and names is not None else None,
    )


def _plain(name: str) -> str:
    return name.replace("_", " ").strip().lower()


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except OSError as error:
        raise DataError(f"cannot read {path} ({error.strerror})") from None
    except ValueError as error:
        raise DataError(f"{path} is not JSON ({error})") from None
