"""`ovbridge detect`: pictures and names in, drawn pictures and JSON out."""

from __future__ import annotations

import itertools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import tyro

from ovbridge.cli.arguments import DetectionPrecisionName, call
from ovbridge.console import Ticker, stdout
from ovbridge.errors import ConfigError, DataError, VocabularyError

if TYPE_CHECKING:
    import numpy as np

    from ovbridge.inference import Detector, Tiling
    from ovbridge.inference.formats import ImageResult
    from ovbridge.inference.inputs import Picture
    from ovbridge.inference.outputs import OutputFolder
    from ovbridge.structures import Detections

OutputFormat = Literal["pictures", "json", "coco", "yolo", "label-studio"]
PICTURES: tuple[OutputFormat, ...] = ("pictures",)
OVERLAP = 0.2

EXAMPLES = """
ovbridge detect photo.jpg --names "red mug,scissors" --out found
ovbridge detect holiday/ 'scans/*.png' clip.mp4 --every 30 --checkpoint runs/demo --out found --json
ovbridge detect photo.jpg --names "sofa|couch,mug=0.5" --like "my cup=cup1.jpg" --out found
ovbridge detect aerial.tif --names car --tile 640 --out found --format pictures coco yolo
"""


def run(argv: Sequence[str]) -> None:
    """Parse `argv` and detect."""
    call(detect, argv, verb="detect", examples=EXAMPLES)


def detect(
    images: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    checkpoint: str = "builtin",
    names: str = "",
    names_file: Path | None = None,
    like: tuple[str, ...] = (),
    out: Path | None = None,
    format: tuple[OutputFormat, ...] = PICTURES,
    overwrite: bool = False,
    score_threshold: float = 0.3,
    max_detections: int = 100,
    every: int = 1,
    tile: int | None = None,
    overlap: float = OVERLAP,
    batch: int = 1,
    device: str | None = None,
    precision: DetectionPrecisionName = "fp32",
    text_encoder: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Find things by name, or by example, in pictures and videos.

    Args:
        images: files, folders or globs; videos too.
        checkpoint: a detector.safetensors, the folder of a run, hf://owner/name, or the built-in detector.
        names: comma-separated, e.g. "red mug,scissors"; "sofa|couch" is one class under two words, "mug=0.4" has a
            threshold of its own, "@names.txt" reads a file. Without names, the checkpoint's own vocabulary.
        names_file: a file with one such name a line.
        like: example crops to look for: crop.jpg, or NAME=crop.jpg; several of one name make one class.
        out: folder for the results.
        format: what to write there, one or several: pictures, json, coco, yolo, label-studio.
        overwrite: replace what an earlier run wrote there.
        score_threshold: leave out detections that score less, 0 to 1.
        max_detections: the best so many of each picture.
        every: of a video, every n-th frame.
        tile: look at large pictures in tiles of this side in pixels, and once at the whole.
        overlap: share of a tile that it has in common with the next, 0 to 0.9.
        batch: pictures in one pass; more is faster on a GPU, and takes memory.
        device: cpu, cuda or cuda:1; by default the GPU if there is one.
        precision: fp32; bf16, about half the time where the hardware has it; mixed, the best
            detections of fp32 in little more; auto, bf16 where the hardware has it.
        text_encoder: CLIP for names that the checkpoint does not know; by default the one that it names.
        as_json: print the detections as JSON.
    """
    from ovbridge.inference.formats import run_record
    from ovbridge.inference.inputs import count_pictures, image_paths, pictures
    from ovbridge.inference.outputs import OutputFolder
    from ovbridge.inference.stems import planned_stems

    _check_numbers(score_threshold=score_threshold, max_detections=max_detections, every=every, batch=batch)
    _check_format(format, out)
    tiling = _tiling(tile, overlap)
    paths = image_paths(images)
    wanted = _names(names, names_file)
    examples = _examples(like)
    stems = planned_stems(paths)
    target = None
    if out is not None:
        from ovbridge.report.drawing import draw_detections

        target = OutputFolder(out, format, paths, draw=draw_detections, overwrite=overwrite)
        for stem in stems.values():
            target.claim_picture(stem)
    detector = _load(checkpoint, device, text_encoder, precision)
    search = _Search(
        detector=detector,
        names=wanted,
        like=examples,
        score_threshold=score_threshold,
        max_detections=max_detections,
        tiling=tiling,
    )
    results: list[ImageResult] = []
    faults: list[Picture] = []
    with Ticker("detect", count_pictures(paths, every=every)) as tick:
        for part in _batches(pictures(paths, every=every), batch):
            faults += [picture for picture in part if picture.pixels is None]
            readable = [picture for picture in part if picture.pixels is not None]
            for picture, found in zip(readable, search([p.pixels for p in readable]), strict=True):
                results.append(_written(picture, found, stems[picture.path], target))
            tick(len(part))
    record = run_record(results, [(fault.label, fault.fault) for fault in faults], checkpoint)
    if results and target is not None:
        target.write_run(results, results[0].detections.names, checkpoint, record)
    if as_json:
        print(json.dumps(record, indent=2))
    elif results:
        _report(record, out)
    if faults:
        others = f" ({len(faults) - 1} more could not be read)" if len(faults) > 1 else ""
        raise DataError(f"{faults[0].fault}{others}")


@dataclass(frozen=True, kw_only=True)
class _Search:
    """What is looked for, and how."""

    detector: Detector
    names: list[str] | None
    like: dict[str, list[np.ndarray[Any, Any]]]
    score_threshold: float
    max_detections: int
    tiling: Tiling | None

    def __call__(self, images: Sequence[Any]) -> list[Detections]:
        if self.tiling is None:
            return self.detector.detect_batch(
                images,
                self.names,
                like=self.like,
                score_threshold=self.score_threshold,
                max_detections=self.max_detections,
            )
        return [
            self.detector.detect(
                image,
                self.names,
                like=self.like,
                score_threshold=self.score_threshold,
                max_detections=self.max_detections,
                tiling=self.tiling,
            )
            for image in images
        ]


def _load(checkpoint: str, device: str | None, text_encoder: str | None, precision: DetectionPrecisionName) -> Detector:
    from ovbridge.inference import Detector

    if text_encoder is None:
        return Detector.load(checkpoint, device, precision=precision)
    from ovbridge.teachers.clip import load_clip

    return Detector.load(checkpoint, device, text_encoder=load_clip(text_encoder), precision=precision)


def _check_numbers(*, score_threshold: float, max_detections: int, every: int, batch: int) -> None:
    if not 0.0 <= score_threshold <= 1.0:
        raise ConfigError(f"--score-threshold is {score_threshold}: give a number from 0 to 1")
    for option, value in (("--max-detections", max_detections), ("--every", every), ("--batch", batch)):
        if value < 1:
            raise ConfigError(f"{option} is {value}: give at least 1")


def _check_format(format: tuple[OutputFormat, ...], out: Path | None) -> None:
    if not format:
        raise ConfigError(f"--format names nothing to write: choose {', '.join(get_args(OutputFormat))}")
    if out is None and format != PICTURES:
        raise ConfigError(f"--format {' '.join(format)} writes into a folder: name one with --out")


def _tiling(tile: int | None, overlap: float) -> Tiling | None:
    if tile is None:
        if overlap != OVERLAP:
            raise ConfigError(f"--overlap {overlap:g} is that of tiles: give their side with --tile")
        return None
    from ovbridge.inference import Tiling

    return Tiling(size=tile, overlap=overlap)


def _names(names: str, names_file: Path | None) -> list[str] | None:
    """Words of --names and --names-file together, or None if neither is given."""
    if names.startswith("@"):
        if names_file is not None:
            raise ConfigError("--names @FILE and --names-file say the same thing: give one of them")
        names, names_file = "", Path(names[1:])
    wanted = [name for name in names.split(",") if name.strip()]
    if names and not wanted:
        raise VocabularyError(f"--names {names!r} holds no name: give at least one, e.g. 'red mug,scissors'")
    if names_file is not None:
        try:
            lines = names_file.read_text(encoding="utf-8-sig").split("\n")
        except (OSError, UnicodeDecodeError) as error:
            reason = getattr(error, "strerror", None) or "not UTF-8 text"
            raise VocabularyError(
                f"names file {names_file} cannot be read ({reason}): give a text file, one name a line"
            ) from None
        listed = [line for line in lines if line.strip()]
        if not listed:
            raise VocabularyError(f"names file {names_file} holds no name: write one a line")
        wanted += listed
    return wanted or None


def _examples(like: Sequence[str]) -> dict[str, list[np.ndarray[Any, Any]]]:
    """Crops by class: "NAME=FILE" under its name, plain files together under the first one's."""
    from ovbridge.images import read_image

    examples: dict[str, list[np.ndarray[Any, Any]]] = {}
    plain = next((Path(word).stem for word in like if "=" not in word or os.path.isfile(word)), "")
    for word in like:
        name, equals, file = word.partition("=")
        if not equals or os.path.isfile(word):
            name, file = plain, word
        if not name.strip() or not file:
            raise ConfigError(f"--like {word!r} is neither a crop nor NAME=crop.jpg: name a picture file")
        examples.setdefault(name.strip(), []).append(read_image(file))
    return examples


def _batches(pictures: Iterator[Picture], size: int) -> Iterator[list[Picture]]:
    while part := list(itertools.islice(pictures, size)):
        yield part


def _written(picture: Picture, found: Detections, stem: str, target: OutputFolder | None) -> ImageResult:
    from ovbridge.inference.formats import ImageResult
    from ovbridge.inference.stems import frame_stem

    assert picture.pixels is not None
    height, width = picture.pixels.shape[:2]
    if picture.frame is not None:
        stem = frame_stem(stem, picture.frame)
    result = ImageResult(image=picture.label, stem=stem, width=width, height=height, detections=found)
    if target is None:
        return result
    if picture.frame is not None:
        target.claim_picture(stem)
    drawn = target.write_picture(picture.pixels, result)
    return replace(result, drawn=None if drawn is None else str(drawn))


def _report(record: Mapping[str, Any], out: Path | None) -> None:
    for image in record["images"]:
        things = ", ".join(f"{d['name']} {d['score']:.2f}" for d in image["detections"]) or "nothing"
        stdout.print(f"{image['image']}: {things}", soft_wrap=True)
    for skipped in record["skipped"]:
        stdout.print(f"skipped: {skipped['reason']}", soft_wrap=True)
    if out is not None:
        stdout.print(f"results in {out}", soft_wrap=True)
