"""`ovbridge detect`: pictures and names in, drawn pictures and JSON out."""

from __future__ import annotations

import glob
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import tyro

from ovbridge.cli.arguments import call
from ovbridge.console import stdout, track
from ovbridge.errors import ConfigError, DataError
from ovbridge.images import SUFFIXES, read_image

EXAMPLES = """
ovbridge detect photo.jpg --names "red mug,scissors" --checkpoint runs/demo/detector.safetensors --out found
ovbridge detect holiday/ 'scans/*.png' --checkpoint runs/demo --out found --json
"""


def run(argv: Sequence[str]) -> None:
    """Parse `argv` and detect."""
    call(detect, argv, verb="detect", examples=EXAMPLES)


def detect(
    images: tyro.conf.Positional[tuple[str, ...]],
    /,
    *,
    checkpoint: str,
    names: str = "",
    out: Path | None = None,
    score_threshold: float = 0.3,
    max_detections: int = 100,
    device: str | None = None,
    text_encoder: str | None = None,
    as_json: Annotated[bool, tyro.conf.arg(name="json")] = False,
) -> None:
    """Find things by name in pictures.

    Args:
        images: files, folders or globs.
        checkpoint: a detector.safetensors, the folder of a run, or hf://owner/name.
        names: comma-separated names, e.g. "red mug,scissors"; without it, the checkpoint's own vocabulary.
        out: folder for the pictures with drawn boxes.
        score_threshold: leave out detections that score less, 0 to 1.
        max_detections: the best so many of each picture.
        device: cpu, cuda or cuda:1; by default the GPU if there is one.
        text_encoder: CLIP for names that the checkpoint does not know; by default the one that it names.
        as_json: print the detections as JSON.
    """
    paths = image_paths(images)
    from ovbridge.inference import Detector
    from ovbridge.report.drawing import draw_detections

    encoder = None
    if text_encoder is not None:
        from ovbridge.teachers.clip import load_clip

        encoder = load_clip(text_encoder)
    detector = Detector.load(checkpoint, device, text_encoder=encoder)
    wanted = [name for name in names.split(",") if name.strip()] or None
    targets = drawing_paths(paths, out)
    records: list[dict[str, Any]] = []
    for path, target in zip(track(paths, "detect", len(paths)), targets, strict=True):
        pixels = read_image(path)
        found = detector.detect(pixels, wanted, score_threshold=score_threshold, max_detections=max_detections)
        if target is not None:
            draw_detections(pixels, found).save(target)
        records.append(
            {
                "image": str(path),
                "width": pixels.shape[1],
                "height": pixels.shape[0],
                "drawn": None if target is None else str(target),
                "detections": [
                    {"name": name, "score": round(score, 4), "box_xyxy": [round(v, 2) for v in box]}
                    for name, score, box in zip(
                        found.class_names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
                    )
                ],
            }
        )
    if as_json:
        print(json.dumps({"checkpoint": checkpoint, "images": records}, indent=2))
        return
    for record in records:
        things = ", ".join(f"{d['name']} {d['score']:.2f}" for d in record["detections"]) or "nothing"
        stdout.print(f"{record['image']}: {things}", soft_wrap=True, markup=False)
    if out is not None:
        stdout.print(f"pictures in {out}", soft_wrap=True, markup=False)


def image_paths(given: Sequence[str]) -> list[Path]:
    """The files that were meant: folders give the pictures below them, globs what they match, in order."""
    if not given:
        raise ConfigError("no image given: name files, folders or globs, e.g. 'ovbridge detect photo.jpg ...'")
    paths: list[Path] = []
    for word in given:
        path = Path(word)
        if path.is_dir():
            found = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES)
        elif not path.exists() and glob.has_magic(word):
            found = sorted(Path(p) for p in glob.glob(word, recursive=True) if Path(p).is_file())
        else:
            found = [path]
        if not found:
            raise DataError(f"{word} holds no image ({', '.join(sorted(SUFFIXES))}): check the path")
        paths += found
    return list(dict.fromkeys(paths))


def drawing_paths(paths: Sequence[Path], out: Path | None) -> list[Path | None]:
    """Where each drawing goes, made unique where two pictures have the same name; None without `out`.

    Raises ConfigError if `out` cannot be a folder or a drawing would replace one of the pictures.
    """
    if out is None:
        return [None] * len(paths)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--out {out} cannot be a folder ({error.strerror}): name another") from None
    originals = {path.resolve() for path in paths}
    targets: list[Path | None] = []
    for path in paths:
        target, count = out / f"{path.stem}.jpg", 1
        while target in targets:
            count += 1
            target = out / f"{path.stem}_{count}.jpg"
        if target.resolve() in originals:
            raise ConfigError(f"--out {out} would replace {target}: name another folder")
        targets.append(target)
    return targets
