"""Search in a label store: by text, or by a crop of a picture."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovbridge.errors import OVBridgeError, StoreError
from ovbridge.images import read_image
from ovbridge.label_store import LabelStore
from ovbridge.label_store.search import RegionHit, search_regions
from ovbridge.serve.encoder import LazyClip

THUMBNAIL_SIDE = 160


@dataclass(frozen=True, kw_only=True)
class RegionSearch:
    """A label store with the CLIP that made its embeddings."""

    store: LabelStore
    encoder: LazyClip
    roots: tuple[Path, ...]
    """Where the images were when they were labelled."""
    template: str = "a photo of {}"

    @classmethod
    def open(cls, path: Path, encoder: LazyClip, device: torch.device) -> RegionSearch:
        """Raises StoreError where `path` has no regions, or TeacherError where the CLIP that made them is absent."""
        store = LabelStore.open(path)
        manifest = store.manifest("regions")
        made_by = manifest.encoder or ""
        same_name = encoder.name.removeprefix("open_clip:") == made_by.removeprefix("open_clip:")
        # A weights file goes by another name here than in the manifest: only what is in it counts.
        if not same_name and "@" not in made_by:
            encoder = LazyClip(made_by, device)
        if encoder.load().digest != manifest.encoder_digest:
            raise StoreError(f"regions in {path} were embedded by another CLIP than {made_by}: name it with --clip")
        return cls(store=store, encoder=encoder, roots=tuple(Path(s.root).resolve() for s in manifest.image_sets))

    def by_text(self, text: str, top: int) -> list[RegionHit]:
        """Regions that the text describes."""
        return self._nearest(self.encoder.embed_texts([self.template.format(text)])[0], top)

    def by_crop(self, crop_HW3: np.ndarray, top: int) -> list[RegionHit]:
        """Regions that look like the crop."""
        return self._nearest(self.encoder.embed_crop(crop_HW3), top)

    def _nearest(self, query_D: Tensor, top: int) -> list[RegionHit]:
        return search_regions(self.store, query_D, top=top)

    def thumbnail(self, hit: RegionHit) -> str | None:
        """The region as a small JPEG `data:` address; None where its image is not at hand."""
        path = self._image_path(hit.image_key)
        if path is None:
            return None
        try:
            pixels = read_image(path)
        except OVBridgeError:
            return None
        crop = Image.fromarray(crop_of(pixels, hit.box_xyxy))
        crop.thumbnail((THUMBNAIL_SIDE, THUMBNAIL_SIDE))
        buffer = io.BytesIO()
        crop.save(buffer, format="JPEG", quality=82)
        return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")

    def _image_path(self, key: str) -> Path | None:
        for root in self.roots:
            path = (root / key).resolve()
            # A store may come from elsewhere: its keys must not lead out of its image folders.
            if path.is_relative_to(root) and path.is_file():
                return path
        return None


def crop_of(pixels_HW3: np.ndarray, box_xyxy: tuple[float, float, float, float]) -> np.ndarray:
    """The part of a picture in a box, at least one pixel each way."""
    height, width = pixels_HW3.shape[:2]
    x1, y1 = min(max(int(box_xyxy[0]), 0), width - 1), min(max(int(box_xyxy[1]), 0), height - 1)
    x2, y2 = min(max(round(box_xyxy[2]), x1 + 1), width), min(max(round(box_xyxy[3]), y1 + 1), height)
    return pixels_HW3[y1:y2, x1:x2]
