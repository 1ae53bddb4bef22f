"""What goes into a detection's score besides the class logit."""

from __future__ import annotations

from dataclasses import dataclass, fields

from ovbridge.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class ScoreFusion:
    """Every weight is in [0, 1] and 0 leaves the detector as it is.

    Geometric means have an exponent each for base and for novel classes, since training makes base scores reliable
    and novel ones not (ViLD, arXiv 2104.13921, §3.3; F-VLM, arXiv 2209.15639, Eq. 4).
    """

    distilled_head: float = 0.0
    """Weight of the distilled projection W_D beside the transferred one, mixed as unit embeddings before the class
    logit (in the spirit of weight-space ensembles, arXiv 2109.01903, but of two heads on one trunk). Only detectors
    with weight transfer have both."""
    objectness_base: float = 0.0
    """score = class^(1-a) * objectness^a for base classes: the class score does not see how well a box fits
    (LP-OVOD, arXiv 2310.17109)."""
    objectness_novel: float = 0.0
    """The same for novel classes."""
    clip_base: float = 0.0
    """score = score^(1-a) * CLIP^a for base classes, CLIP's probability of the class for the crop of the box."""
    clip_novel: float = 0.0
    """The same for novel classes."""
    clip_scale: float = 100.0
    """Multiplier of CLIP's cosine before its softmax over all names (CLIP's own is 100)."""
    templates: tuple[str, ...] = ()
    """Prompts whose text embeddings are averaged, e.g. "a photo of a {}, a drawing of a {}"; empty takes the
    checkpoint's own."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if isinstance(value, float) and field.name != "clip_scale" and not 0.0 <= value <= 1.0:
                raise ConfigError(f"fusion {field.name} is {value}: give a weight from 0 to 1")
        for template in self.templates:
            if "{}" not in template:
                raise ConfigError(f"prompt {template!r} has no place for the name: write it with {{}}")

    @property
    def needs_clip(self) -> bool:
        """Whether crops have to be embedded."""
        return self.clip_base > 0 or self.clip_novel > 0

    @property
    def changes_nothing(self) -> bool:
        """Whether the detector is left as it is."""
        return self == ScoreFusion(clip_scale=self.clip_scale)
