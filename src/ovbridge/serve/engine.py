"""What the server computes, without a word of HTTP: detection in batches, embeddings, the vocabulary.

Legend: K rows of text, D embedding width.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ovbridge.detector import Search, to_original_size
from ovbridge.detector.postprocess import RowClasses
from ovbridge.device import DetectionPrecision
from ovbridge.errors import OVBridgeError
from ovbridge.inference import Detector
from ovbridge.inference.queries import parse_queries
from ovbridge.serve.encoder import LazyClip
from ovbridge.serve.limits import Limits
from ovbridge.serve.pictures import decode
from ovbridge.structures import Detections


@dataclass(frozen=True, kw_only=True)
class Picture:
    """An upload as the network takes it."""

    small_HW3: np.ndarray[Any, np.dtype[np.uint8]]  # noqa: N815 - dense-maths suffix
    """At the size of the network."""
    original_hw: tuple[int, int]
    """Height and width of the upright picture."""


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """What to look for."""

    names: tuple[str, ...]
    """What detections may be called."""
    text_KD: Tensor | None  # noqa: N815 - dense-maths suffix
    """The embeddings of their words; None for the stored vocabulary."""
    rows: RowClasses | None
    """Which words make one class together; None where each is one."""
    score_threshold: float
    """Only scores above it."""
    max_detections: int
    """The best so many."""


@dataclass(frozen=True, kw_only=True)
class DetectJob:
    """One picture and what to look for in it."""

    picture: Picture
    wanted: Wanted


class Engine:
    """A detector that several requests share."""

    def __init__(self, detector: Detector, encoder: LazyClip, limits: Limits, *, checkpoint: str = "") -> None:
        self.detector, self.encoder, self.limits, self.checkpoint = detector, encoder, limits, checkpoint
        self._stored = frozenset(detector.names)
        self._text_lock = threading.Lock()
        self._all_threads = torch.get_num_threads()
        self._mine = threading.local()
        self._busy = 0
        self._busy_lock = threading.Lock()

    @classmethod
    def load(
        cls,
        checkpoint: str | Path,
        limits: Limits,
        *,
        device: str | None = None,
        clip: str | None = None,
        precision: DetectionPrecision = "fp32",
    ) -> Engine:
        """Read a checkpoint; raises CheckpointError, ConfigError or TeacherError in one line."""
        detector = Detector.load(checkpoint, device)
        encoder = LazyClip(clip or detector.metadata.text_encoder, detector.model.device)
        if clip is not None:
            encoder.load()
        # Loaded again around the same network, so that names and crops share one CLIP.
        detector = Detector(
            detector.model,
            detector.metadata,
            device=detector.model.device,
            text_encoder=encoder,
            precision=precision,
        )
        return cls(detector, encoder, limits, checkpoint=Path(checkpoint).name)

    def first_job(self) -> DetectJob:
        """A job to run once, so that the first request does not pay for what the first run builds."""
        picture = Picture(small_HW3=self.detector.resize(np.zeros((240, 320, 3), np.uint8)), original_hw=(240, 320))
        return DetectJob(picture=picture, wanted=self.wanted(None, score_threshold=0.5, max_detections=1))

    def enter_worker(self, number: int) -> None:
        """Called in each model thread: the first may use every core while it is alone, the others have one each.

        A thread that never asks for more than one makes no OpenMP team. Idle teams count as well: with more threads
        than cores, libgomp puts the busy team to sleep between operators, half as fast on two cores.
        """
        self._mine.threads = self._all_threads if number == 0 else 1
        torch.set_num_threads(self._mine.threads)

    def preload_encoder(self) -> None:
        """Load the text encoder before anyone asks for a new name; where it cannot be, those who ask hear of it."""
        with suppress(OVBridgeError):
            self.encoder.load()

    def picture(self, content: bytes) -> Picture:
        """Decode an upload; raises RequestError as `decode` does."""
        pixels = decode(content, self.limits.pixels)
        return Picture(small_HW3=self.detector.resize(pixels), original_hw=(pixels.shape[0], pixels.shape[1]))

    def wanted(self, names: Sequence[str] | None, *, score_threshold: float, max_detections: int) -> Wanted:
        """Names, each "name", "name|synonym" or "name=0.4", as embeddings; None takes the stored vocabulary.

        Raises VocabularyError for a name given twice, TeacherError where the text encoder is needed and absent.
        """
        if names is None:
            return Wanted(
                names=self.detector.names, text_KD=None, rows=None,
                score_threshold=score_threshold, max_detections=max_detections,
            )  # fmt: skip
        queries = parse_queries(names, self._stored)
        thresholds = [score_threshold if q.score_threshold is None else q.score_threshold for q in queries]
        plain = all(len(q.words) == 1 and q.score_threshold is None for q in queries)
        per_word = [k for k, query in enumerate(queries) for _ in query.words]
        return Wanted(
            names=tuple(query.name for query in queries),
            text_KD=self.text_rows([word for query in queries for word in query.words]),
            rows=None
            if plain
            else RowClasses(
                class_ids_K=torch.tensor(per_word, device=self.detector.model.device),
                thresholds_K=torch.tensor([thresholds[k] for k in per_word], device=self.detector.model.device),
            ),
            score_threshold=min(thresholds),
            max_detections=max_detections,
        )

    def text_rows(self, names: Sequence[str]) -> Tensor:
        """[K, D] unit embeddings of names; raises TeacherError where the text encoder is needed and absent."""
        with self._text_lock:
            return self.detector.text_rows(names)

    def batch_key(self, job: DetectJob) -> tuple[int, int]:
        """Pictures with equal keys are padded to the same size, so that company does not change their result."""
        return self.detector.padded_size(job.picture.small_HW3)

    def run(self, jobs: Sequence[DetectJob]) -> list[Detections]:
        """Detections of several pictures in one pass, boxes in pixels of the upright originals."""
        searches = [
            Search(
                text_bank_KD=job.wanted.text_KD,
                rows=job.wanted.rows,
                postprocess=replace(
                    self.detector.model.config.postprocess,
                    score_threshold=job.wanted.score_threshold,
                    max_detections=job.wanted.max_detections,
                ),
            )
            for job in jobs
        ]
        with self._busy_lock:
            self._busy += 1
            torch.set_num_threads(max(1, min(getattr(self._mine, "threads", 1), self._all_threads // self._busy)))
        try:
            found = self.detector.detect_resized([job.picture.small_HW3 for job in jobs], searches)
        finally:
            with self._busy_lock:
                self._busy -= 1
        results = []
        for raw, job in zip(found, jobs, strict=True):
            height, width = job.picture.small_HW3.shape[:2]
            fitted = to_original_size(replace(raw, mask_probabilities=None), (height, width), job.picture.original_hw)
            results.append(
                Detections(
                    boxes_xyxy=fitted.boxes_xyxy.float().cpu(),
                    scores=fitted.scores.float().cpu(),
                    class_ids=fitted.class_ids.cpu(),
                    names=job.wanted.names,
                )
            )
        return results


def default_workers(device: torch.device) -> int:
    """Model threads: two on a CPU with several cores (what one spends in Python, the other computes), else one."""
    return 2 if device.type == "cpu" and (os.cpu_count() or 1) > 1 else 1
