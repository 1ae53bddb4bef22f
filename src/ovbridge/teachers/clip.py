"""CLIP as a teacher: embeddings of image crops and of class names.

One class serves the CLIP that ships with the package and every model of open_clip: both are
`open_clip` models, only their configuration and weights come from different places.
Legend: N crops or names, D embedding width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ovbridge.device import Precision, autocast
from ovbridge.errors import TeacherError
from ovbridge.teachers.batch_first_attention import keep_batches_first
from ovbridge.teachers.clip_pixels import Preprocessing
from ovbridge.teachers.digest import state_digest
from ovbridge.teachers.masked_attention import encode_masked
from ovbridge.teachers.prompts import fill
from ovbridge.teachers.tokenizer import ByteBpeTokenizer
from ovbridge.vocabulary.text_bank import PAPER_TEMPLATE, TextBank

BUILTIN_CLIP = Path(__file__).parent / "weights" / "clip.safetensors"
BUILTIN_NAMES = ("builtin",)
FORMAT = "ovbridge.clip"
"""The metadata key of our files."""


@dataclass(frozen=True, kw_only=True)
class ClipConfig:
    """Shape of a CLIP that is trained here, in open_clip's own terms."""

    embed_dim: int = 64
    """Width of the joint embedding space, D."""
    image_size: int = 64
    """Side of the square input in pixels."""
    vision_layers: tuple[int, int, int, int] = (2, 2, 2, 2)
    """Bottleneck blocks a stage of open_clip's modified ResNet."""
    vision_width: int = 16
    """Channels of the stem; the last stage has 32 times as many."""
    text_width: int = 96
    """Width of the text transformer."""
    text_layers: int = 3
    """Blocks of the text transformer."""
    context_length: int = 24
    """Tokens a text, start and end marks included."""

    def open_clip_config(self, vocab_size: int) -> dict[str, Any]:
        """Keyword arguments of `open_clip.model.CLIP`."""
        return {
            "embed_dim": self.embed_dim,
            "vision_cfg": {
                "layers": list(self.vision_layers),
                "width": self.vision_width,
                "head_width": 64,
                "image_size": self.image_size,
            },
            "text_cfg": {
                "context_length": self.context_length,
                "vocab_size": vocab_size,
                "width": self.text_width,
                "heads": max(1, self.text_width // 32),
                "layers": self.text_layers,
            },
        }


class ClipTeacher:
    """A frozen CLIP: `embed_crops` for region targets, `embed_names` for classifiers."""

    def __init__(
        self,
        model: nn.Module,
        tokenize: Callable[[Sequence[str]], Tensor],
        *,
        name: str,
        digest: str,
        image_size: int,
        embedding_dim: int,
        device: torch.device,
        batch_size: int = 128,
        precision: Precision = "auto",
        preprocessing: Preprocessing | None = None,
    ) -> None:
        """`precision` is that of the image tower; texts are always embedded in fp32. `preprocessing` is CLIP's own
        unless given."""
        self.model = model.to(device).eval().requires_grad_(False)
        keep_batches_first(self.model)
        self.name, self.digest = name, digest
        self.image_size, self.embedding_dim = image_size, embedding_dim
        self._tokenize, self._device, self._batch_size = tokenize, device, batch_size
        self._precision: Precision = precision
        self._preprocessing = preprocessing or Preprocessing()
        self._mean = torch.tensor(self._preprocessing.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(self._preprocessing.std, device=device).view(1, 3, 1, 1) * 255

    @torch.inference_mode()
    def embed_crops(self, crops: Sequence[np.ndarray]) -> Tensor:
        """Embeddings of RGB crops.

        Args:
            crops: N arrays [h, w, 3] uint8, any size; what the image tower is shown of each is up to `Preprocessing`.

        Returns:
            [N, D] float32 on the CPU, not normalised.
        """
        if not crops:
            return torch.zeros(0, self.embedding_dim)
        parts = []
        for start in range(0, len(crops), self._batch_size):
            pixels = self._pixels(crops[start : start + self._batch_size])
            with autocast(self._device, self._precision):
                embeddings = self.model.encode_image(pixels)  # type: ignore[operator]
            parts.append(embeddings.float().cpu())
        return torch.cat(parts)

    @torch.inference_mode()
    def embed_masked_crops(self, crops: Sequence[np.ndarray], inner_boxes_xyxy: Sequence[Sequence[float]]) -> Tensor:
        """Embeddings read out of a part of each crop; see `masked_attention`.

        Args:
            crops: N square arrays [s, s, 3] uint8.
            inner_boxes_xyxy: the part of each crop to look at, in its pixels.

        Returns:
            [N, D] float32 on the CPU, not normalised.

        Raises:
            TeacherError: the image tower is neither a vision transformer nor a modified ResNet of open_clip.
        """
        parts = [torch.zeros(0, self.embedding_dim)]
        for start in range(0, len(crops), self._batch_size):
            some = slice(start, start + self._batch_size)
            scale = [self.image_size / crop.shape[0] for crop in crops[some]]
            boxes = torch.tensor(inner_boxes_xyxy[some]) * torch.tensor(scale)[:, None]
            pixels = self._pixels(crops[some])
            with autocast(self._device, self._precision):
                embeddings = encode_masked(self.model, pixels, boxes.to(self._device), name=self.name)
            parts.append(embeddings.float().cpu())
        return torch.cat(parts)

    def _pixels(self, crops: Sequence[np.ndarray]) -> Tensor:
        """[N, 3, size, size] normalised."""
        pixels = np.stack([self._preprocessing.square(crop, self.image_size) for crop in crops])
        batch = torch.from_numpy(pixels).to(self._device).permute(0, 3, 1, 2).float()
        return (batch - self._mean) / self._std

    @torch.inference_mode()
    def embed_texts(self, texts: Sequence[str]) -> Tensor:
        """[N, D] float32 embeddings of whole texts, not normalised."""
        parts = []
        for start in range(0, len(texts), self._batch_size):
            tokens = self._tokenize(texts[start : start + self._batch_size]).to(self._device)
            parts.append(self.model.encode_text(tokens).float().cpu())  # type: ignore[operator]
        return torch.cat(parts) if parts else torch.zeros(0, self.embedding_dim)

    def embed_names(self, names: Sequence[str], templates: Sequence[str] = (PAPER_TEMPLATE,)) -> TextBank:
        """The text bank of `names`; several templates are averaged after normalising each."""
        if len(templates) == 1:
            embeddings = self.embed_texts([fill(templates[0], name) for name in names])
        else:
            per_template = [
                F.normalize(self.embed_texts([fill(template, name) for name in names]), dim=1) for template in templates
            ]
            embeddings = torch.stack(per_template).mean(dim=0)
        return TextBank(names=tuple(names), embeddings_KD=embeddings, encoder=self.name, templates=tuple(templates))


def load_clip(name_or_path: str, device: torch.device | str = "cpu", *, precision: Precision = "auto") -> ClipTeacher:
    """A CLIP teacher by name or file.

    Args:
        name_or_path: "builtin" (ships with the package), a `.safetensors` written by `ovbridge train clip`,
            "MODEL/TAG" of open_clip such as "ViT-B-32-quickgelu/openai", "MODEL:FILE" for local weights, a folder
            with `open_clip_config.json` and weights, or "hf-hub:OWNER/NAME" of open_clip.
        device: where to compute.
        precision: of the image tower; "auto" is bf16 where the hardware computes it.

    Raises:
        TeacherError: no such file or model, foreign weights, or weights that only a network could fetch.
    """
    device = torch.device(device)
    if name_or_path in BUILTIN_NAMES:
        return _load_ours(BUILTIN_CLIP, device, name="builtin", precision=precision)
    if name_or_path.endswith(".safetensors") and ":" not in name_or_path:
        return _load_ours(Path(name_or_path), device, name=None, precision=precision)
    return _load_open_clip(name_or_path, device, precision)


def save_clip(path: Path, model: nn.Module, tokenizer: ByteBpeTokenizer, config: ClipConfig, trained_on: str) -> None:
    """Write one safetensors file: fp16 weights, configuration and tokenizer in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    record = {"config": config.__dict__, "tokenizer": tokenizer.model_json, "trained_on": trained_on}
    tensors = {
        name: (value.half() if value.is_floating_point() else value).contiguous()
        for name, value in model.state_dict().items()
    }
    aside = path.with_name(path.name + ".part")
    # One key: safetensors writes several in random order, and equal runs must give equal files.
    save_file(tensors, aside, metadata={FORMAT: json.dumps(record, sort_keys=True)})
    aside.replace(path)


def build_clip(config: ClipConfig, vocab_size: int) -> nn.Module:
    """A freshly initialised open_clip model of the given shape."""
    from open_clip.model import CLIP

    return CLIP(**config.open_clip_config(vocab_size))  # type: ignore[no-any-return]


def _load_ours(path: Path, device: torch.device, name: str | None, precision: Precision) -> ClipTeacher:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if FORMAT not in metadata:
                raise TeacherError(f"{path} is not a CLIP written by 'ovbridge train clip'")
            state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError) as error:
        raise TeacherError(f"cannot read the CLIP weights {path}: {error}") from None
    record = json.loads(metadata[FORMAT])
    fields = record["config"]
    config = ClipConfig(**{**fields, "vision_layers": tuple(fields["vision_layers"])})
    tokenizer = ByteBpeTokenizer(record["tokenizer"])
    model = build_clip(config, tokenizer.vocab_size)
    model.load_state_dict({key: value.float() if value.is_floating_point() else value for key, value in state.items()})
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return ClipTeacher(
        model,
        lambda texts: tokenizer(texts, config.context_length),
        name=name or f"{path.name}@{digest[:12]}",
        digest=digest,
        image_size=config.image_size,
        embedding_dim=config.embed_dim,
        device=device,
        precision=precision,
    )


def _load_open_clip(name: str, device: torch.device, precision: Precision) -> ClipTeacher:
    model_name, weights = _open_clip_model(name)
    import open_clip

    # Weights decide their activation: OpenAI's under a name without "-quickgelu" would else load as another network.
    quick_gelu = bool(weights and open_clip.get_pretrained_cfg(model_name, weights).get("quick_gelu"))
    try:
        model = open_clip.create_model(
            model_name, pretrained=weights, require_pretrained=weights is not None, force_quick_gelu=quick_gelu
        )
        tokenizer = open_clip.get_tokenizer(model_name)
    except Exception as error:  # hub, network and format errors share no base class
        line = " ".join(str(error).split())[:200] or type(error).__name__
        raise TeacherError(
            f"cannot load CLIP {name} ({line}): without a network give local weights as MODEL:FILE or a folder"
        ) from None
    preprocessing = Preprocessing.of(model, name)
    size = model.visual.image_size
    with torch.inference_mode():
        embedding_dim = model.encode_text(tokenizer(["a"])).shape[1]
    return ClipTeacher(
        model,
        lambda texts: tokenizer(list(texts)),
        name=f"open_clip:{name}",
        digest=state_digest(model, _without_tensors(model) | preprocessing.departures()),
        image_size=int(size[0] if isinstance(size, tuple | list) else size),
        embedding_dim=int(embedding_dim),
        device=device,
        precision=precision,
        preprocessing=preprocessing,
    )


def _without_tensors(model: nn.Module) -> dict[str, str]:
    """How a model of open_clip differs from OpenAI's in what its tensors do not show."""
    from open_clip.transformer import QuickGELU

    return {} if any(isinstance(module, QuickGELU) for module in model.modules()) else {"activation": "gelu"}


def _open_clip_model(name: str) -> tuple[str, str | None]:
    """(model, weights) as `open_clip.create_model` takes them; TeacherError for what it would not understand."""
    if name.startswith("hf-hub:"):
        return name, None
    if Path(name).is_dir():
        if not (Path(name) / "open_clip_config.json").is_file():
            raise TeacherError(f"the folder {name} has no open_clip_config.json: is it a CLIP of open_clip?")
        return f"local-dir:{name}", None
    import open_clip

    model_name, separator, weights = name.partition(":") if ":" in name else name.partition("/")
    if not separator or model_name not in open_clip.list_models():
        raise TeacherError(
            f"unknown CLIP {name!r}: use 'builtin', a .safetensors file, MODEL/TAG of open_clip such as "
            "ViT-B-32-quickgelu/openai, MODEL:FILE, or a folder with open_clip_config.json"
        )
    if ":" in name and not Path(weights).is_file():
        raise TeacherError(f"no weights file {weights} for CLIP {model_name}")
    if ":" not in name and weights not in open_clip.list_pretrained_tags_by_model(model_name):
        known = ", ".join(open_clip.list_pretrained_tags_by_model(model_name)) or "none"
        raise TeacherError(f"open_clip has no weights {weights!r} for {model_name} (it has: {known})")
    return model_name, weights
