"""The folder that detections go to: what will be written is known, and refused if it exists, before anything runs."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from ovbridge.errors import ConfigError
from ovbridge.inference.formats import ImageResult, coco_images, coco_results, label_studio_task
from ovbridge.structures import Detections

OutputFormat = Literal["pictures", "json", "coco", "yolo", "label-studio"]

JSON_NAME = "detections.json"
COCO_NAMES = ("coco_results.json", "coco_images.json")
YOLO_FOLDER = "labels"
YOLO_NAMES = "classes.txt"
LABEL_STUDIO_NAME = "label_studio.json"


class OutputFolder:
    """Writes the results of one run below a folder in the forms asked for.

    Nothing there before is replaced unless `overwrite`; a picture that was given is never replaced.
    """

    def __init__(
        self,
        folder: Path,
        formats: Sequence[OutputFormat],
        originals: Iterable[Path],
        *,
        draw: Callable[[np.ndarray[Any, Any], Detections], Image.Image],
        overwrite: bool,
    ) -> None:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"--out {folder} cannot be a folder ({error.strerror}): name another") from None
        self.folder = folder
        self._formats = frozenset(formats)
        self._originals = {path.resolve() for path in originals}
        self._draw, self._overwrite = draw, overwrite
        for target in self._whole_run_files():
            self._claim(target)
        labels = folder / YOLO_FOLDER
        if "yolo" in self._formats and labels.exists() and not labels.is_dir():
            raise ConfigError(f"{labels} is no folder, and labels are to be written into it: name another with --out")

    def claim_picture(self, stem: str) -> None:
        """Raise ConfigError if a file of the picture `stem` exists or would replace one of the pictures given."""
        if "pictures" in self._formats:
            self._claim(self.folder / f"{stem}.jpg")
        if "yolo" in self._formats:
            self._claim(self.folder / YOLO_FOLDER / f"{stem}.txt")

    def write_picture(self, pixels: np.ndarray[Any, Any], result: ImageResult) -> Path | None:
        """The files of one picture; returns that of the drawing, if drawings are asked for."""
        if "yolo" in self._formats:
            labels = self.folder / YOLO_FOLDER
            labels.mkdir(exist_ok=True)
            lines = result.detections.to_yolo(width=result.width, height=result.height)
            (labels / f"{result.stem}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
        if "pictures" not in self._formats:
            return None
        target = self.folder / f"{result.stem}.jpg"
        self._draw(pixels, result.detections).save(target, quality=92)
        return target

    def write_run(
        self, results: Sequence[ImageResult], names: Sequence[str], checkpoint: str, record: Mapping[str, Any]
    ) -> None:
        """The files of the whole run; `record` is that of `run_record`."""
        if "json" in self._formats:
            self._dump(JSON_NAME, record)
        if "coco" in self._formats:
            self._dump(COCO_NAMES[0], coco_results(results))
            self._dump(COCO_NAMES[1], coco_images(results, names))
        if "yolo" in self._formats:
            (self.folder / YOLO_NAMES).write_text("".join(f"{name}\n" for name in names), encoding="utf-8")
        if "label-studio" in self._formats:
            self._dump(LABEL_STUDIO_NAME, [label_studio_task(result, checkpoint) for result in results])

    def _whole_run_files(self) -> list[Path]:
        names = {"json": (JSON_NAME,), "coco": COCO_NAMES, "yolo": (YOLO_NAMES,), "label-studio": (LABEL_STUDIO_NAME,)}
        return [self.folder / name for form, files in names.items() if form in self._formats for name in files]

    def _claim(self, target: Path) -> None:
        if target.resolve() in self._originals:
            raise ConfigError(f"--out {self.folder} would replace {target}: name another folder")
        if target.is_dir():
            raise ConfigError(f"{target} is a folder where a file is to be written: name another folder with --out")
        if target.exists() and not self._overwrite:
            raise ConfigError(f"{target} exists: name another folder with --out, or add --overwrite")

    def _dump(self, name: str, content: Any) -> None:
        (self.folder / name).write_text(json.dumps(content, indent=1), encoding="utf-8")
