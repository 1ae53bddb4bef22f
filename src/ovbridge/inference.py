"""The detector as its users see it: load a checkpoint, give pictures and names, get boxes.

Legend: K names, D embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from ovbridge.detector import DetectorMetadata, TwoStageDetector, load_detector, to_original_size
from ovbridge.device import default_device
from ovbridge.errors import CheckpointError, ConfigError, DataError, OVBridgeError, TeacherError, VocabularyError
from ovbridge.images import read_image, resize_pixels, resized_size, rgb_array
from ovbridge.structures import Detections, Proposals
from ovbridge.vocabulary import TextBank

CHECKPOINT_NAME = "detector.safetensors"
"""What a folder or a hub repository holds."""

PAPER_SIZE = (800, 1333)
"""Short side and longest side at detection where the checkpoint does not name others (`extra["test_size"]`)."""

ImageLike = str | Path | Image.Image | np.ndarray[Any, Any]

_SAME_ENCODER_COSINE = 0.98
_REMEMBERED_NAMES = 10_000


class TextEncoder(Protocol):
    """Whatever turns names into the embeddings that the detector was trained against."""

    def embed_names(self, names: Sequence[str], templates: Sequence[str]) -> TextBank:
        """One row a name, not normalised."""


class Detector:
    """An open-vocabulary detector: `Detector.load("detector.safetensors").detect("photo.jpg", ["red mug"])`."""

    def __init__(
        self,
        model: TwoStageDetector,
        metadata: DetectorMetadata,
        *,
        device: torch.device | str | None = None,
        text_encoder: TextEncoder | None = None,
    ) -> None:
        self.metadata = metadata
        self._model = model.to(_usable_device(device)).eval()
        self._encoder = text_encoder
        self._encoder_checked = False
        self._stored_rows = dict(zip(metadata.names, model.roi_head.classifier.text_KD.cpu(), strict=True))
        self._encoded_rows: dict[str, Tensor] = {}
        self._short_side, self._long_side = metadata.extra.get("test_size", PAPER_SIZE)

    @classmethod
    def load(
        cls,
        source: str | Path,
        device: torch.device | str | None = None,
        *,
        text_encoder: TextEncoder | None = None,
    ) -> Detector:
        """Read a checkpoint.

        Args:
            source: a `.safetensors` of ours, a folder that holds `detector.safetensors`, or "hf://owner/name".
            device: where to compute; by default the GPU if there is one.
            text_encoder: for names outside the stored vocabulary; by default the one that the checkpoint names is
                loaded when such a name is first asked for.

        Raises:
            CheckpointError: nothing there, or not a checkpoint of ours. ConfigError: no such device.
        """
        model, metadata = load_detector(_checkpoint_path(source))
        return cls(model, metadata, device=device, text_encoder=text_encoder)

    @property
    def names(self) -> tuple[str, ...]:
        """The vocabulary stored in the checkpoint."""
        return self.metadata.names

    def detect(
        self,
        image: ImageLike,
        names: Sequence[str] | None = None,
        *,
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> Detections:
        """Find things by name in one picture.

        Args:
            image: a file, a Pillow image, or an array [H, W, 3] (or grey [H, W]) uint8 in RGB order.
            names: what to look for, any words; None takes the stored vocabulary.
            score_threshold: only scores above it, in [0, 1].
            max_detections: the best so many.

        Returns:
            Detections, best first; boxes in pixels of the picture given (upright, where EXIF says it is turned).

        Raises:
            DataError: the picture cannot be read. VocabularyError: a name is given twice, or there is none.
            TeacherError: a name is new and its text encoder cannot be loaded.
        """
        return self.detect_batch([image], names, score_threshold=score_threshold, max_detections=max_detections)[0]

    def detect_batch(
        self,
        images: Sequence[ImageLike],
        names: Sequence[str] | None = None,
        *,
        score_threshold: float = 0.05,
        max_detections: int = 100,
    ) -> list[Detections]:
        """`detect` for several pictures of any sizes in one pass; memory grows with their number."""
        wanted = self.names if names is None else _checked_names(names)
        text_KD = None if names is None else self.text_rows(wanted)
        if not images:
            return []
        originals = [_pixels(image) for image in images]
        resized = [self.resize(pixels) for pixels in originals]
        postprocess = replace(
            self._model.config.postprocess, score_threshold=score_threshold, max_detections=max_detections
        )
        inputs = [self._input(pixels) for pixels in resized]
        found = self._model.detect(inputs, postprocess=postprocess, text_bank_KD=text_KD)
        results = []
        for raw, small, original in zip(found, resized, originals, strict=True):
            fitted = to_original_size(raw, _size(small), _size(original))
            results.append(
                Detections(
                    boxes_xyxy=fitted.boxes_xyxy.float().cpu(),
                    scores=fitted.scores.float().cpu(),
                    class_ids=fitted.class_ids.cpu(),
                    names=tuple(wanted),
                    masks=None if fitted.masks is None else fitted.masks.cpu(),
                )
            )
        return results

    def propose(self, image: ImageLike, count: int) -> Proposals:
        """The `count` best class-agnostic boxes of the region proposal network, in pixels of the picture given."""
        original = _pixels(image)
        small = self.resize(original)
        found = self._model.propose([self._input(small)], count)[0]
        return Proposals(
            boxes_xyxy=found.boxes_xyxy.float().cpu() / _box_scale(small, original), scores=found.scores.float().cpu()
        )

    def embed_regions(self, image: ImageLike, boxes_xyxy: Tensor) -> Tensor:
        """[N, D] unit embeddings of given boxes [N, 4] (pixels of the picture), as they are compared with names."""
        original = _pixels(image)
        small = self.resize(original)
        boxes = boxes_xyxy.float() * _box_scale(small, original)
        return self._model.region_embeddings([self._input(small)], [boxes])[0].float().cpu()

    def _input(self, pixels_HW3: np.ndarray[Any, Any]) -> Tensor:
        return torch.from_numpy(pixels_HW3).permute(2, 0, 1).to(self._model.device)

    def resize(self, pixels_HW3: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The picture at the size that the checkpoint was made for."""
        height, width = _size(pixels_HW3)
        size = resized_size(height, width, short_side=self._short_side, long_side=self._long_side)
        return resize_pixels(pixels_HW3, size)

    def text_rows(self, names: Sequence[str]) -> Tensor:
        """[K, D] unit text embeddings: stored rows where there are, the text encoder's for the rest."""
        absent = [name for name in names if name not in self._stored_rows and name not in self._encoded_rows]
        if absent:
            if len(self._encoded_rows) + len(absent) > _REMEMBERED_NAMES:
                self._encoded_rows.clear()
                absent = [name for name in names if name not in self._stored_rows]
            self._encoded_rows.update(zip(absent, self._encode(absent), strict=True))
        return torch.stack(
            [self._stored_rows[name] if name in self._stored_rows else self._encoded_rows[name] for name in names]
        )

    def _encode(self, names: Sequence[str]) -> Tensor:
        if self._encoder is None:
            self._encoder = _named_encoder(self.metadata.text_encoder, names)
        if not self._encoder_checked:
            self._check_encoder(self._encoder)
            self._encoder_checked = True
        return F.normalize(self._encoder.embed_names(names, self.metadata.templates).embeddings_KD, dim=1).cpu()

    def _check_encoder(self, encoder: TextEncoder) -> None:
        """Refuse an encoder that does not give a stored name its stored embedding: its scores would mean nothing."""
        name, stored_D = next(iter(self._stored_rows.items()))
        row_D = encoder.embed_names([name], self.metadata.templates).embeddings_KD[0].cpu()
        if len(row_D) != len(stored_D) or float(F.cosine_similarity(row_D, stored_D, dim=0)) < _SAME_ENCODER_COSINE:
            raise VocabularyError(
                f"the text encoder given does not agree with the checkpoint on {name!r}: "
                f"give {self.metadata.text_encoder!r}, which made its vocabulary"
            )


def _named_encoder(encoder_id: str, names: Sequence[str]) -> TextEncoder:
    # Teachers are heavy and training never needs them here: imported only when a new name is asked for.
    from ovbridge.teachers.clip import load_clip

    try:
        return load_clip(encoder_id.removeprefix("open_clip:"))
    except OVBridgeError as error:
        raise TeacherError(
            f"no stored text embedding for {', '.join(map(repr, names))}, and the checkpoint's text encoder "
            f"{encoder_id!r} cannot be loaded ({error}): use names of the stored vocabulary or give a text encoder"
        ) from None


def _checkpoint_path(source: str | Path) -> Path:
    if str(source).startswith("hf://"):
        return _from_hub(str(source).removeprefix("hf://"))
    path = Path(source)
    if path.is_dir() and not (path / CHECKPOINT_NAME).is_file():
        raise CheckpointError(f"folder {path} holds no {CHECKPOINT_NAME}: give the file itself, or the folder of a run")
    return path / CHECKPOINT_NAME if path.is_dir() else path


def _from_hub(repository: str) -> Path:
    try:
        from huggingface_hub import hf_hub_download
    except ImportError:
        raise CheckpointError("hf:// needs the hub client: pip install 'ovbridge[hf]'") from None
    try:
        return Path(hf_hub_download(repository, CHECKPOINT_NAME))
    except Exception as error:  # The hub's client has no common base for network, name and permission errors.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"cannot fetch {CHECKPOINT_NAME} from hf://{repository} ({reason}): check the name and the network"
        ) from None


def _usable_device(device: torch.device | str | None) -> torch.device:
    try:
        wanted = default_device() if device is None else torch.device(device)
        torch.empty(0, device=wanted)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device {device!s} cannot be used ({str(error).splitlines()[0]}): try 'cpu'") from None
    return wanted


def _checked_names(names: Sequence[str]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise VocabularyError(
            f"names is one string, {names!r}: give a list, e.g. {[n.strip() for n in names.split(',')]}"
        )
    stripped = tuple(name.strip() for name in names)
    if not stripped or not all(stripped):
        raise VocabularyError("there is no name to look for, or one is empty: give at least one, e.g. ['red mug']")
    twice = next((name for i, name in enumerate(stripped) if name in stripped[:i]), None)
    if twice is not None:
        raise VocabularyError(f"name {twice!r} is given twice: give it once")
    return stripped


def _pixels(image: ImageLike) -> np.ndarray[Any, Any]:
    """[H, W, 3] uint8 RGB of whatever was given."""
    if isinstance(image, (str, Path)):
        return read_image(image)
    if isinstance(image, Image.Image):
        return rgb_array(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (3, 4)):
        raise DataError(f"an image array must be [H, W, 3] uint8 in RGB order, got {array.shape} {array.dtype}")
    if 0 in array.shape:
        raise DataError(f"the image array is empty: its shape is {array.shape}")
    return array if array.ndim == 3 and array.shape[2] == 3 else rgb_array(Image.fromarray(array))


def _size(pixels_HW3: np.ndarray[Any, Any]) -> tuple[int, int]:
    return int(pixels_HW3.shape[0]), int(pixels_HW3.shape[1])


def _box_scale(resized_HW3: np.ndarray[Any, Any], original_HW3: np.ndarray[Any, Any]) -> Tensor:
    """[4] factors from pixels of the original to pixels of the resized picture."""
    (height, width), (original_height, original_width) = _size(resized_HW3), _size(original_HW3)
    return torch.tensor([width / original_width, height / original_height] * 2)
