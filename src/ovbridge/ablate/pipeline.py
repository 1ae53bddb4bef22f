"""The paper's Fig. 1 as inline SVG in the colours of the page: what is trained on what, stage by stage."""

from __future__ import annotations

import html

_WIDTH, _HEIGHT = 960, 330
_BOXES: dict[str, tuple[int, int, int, int, str, str]] = {
    "det": (10, 20, 170, 54, "images with boxes", "base classes"),
    "cls": (10, 256, 170, 54, "images with labels", "base and novel classes"),
    "all": (230, 92, 180, 54, "“all objects”", "5 regions an image"),
    "every": (230, 184, 180, 54, "“every NAME”", "a pseudo box a label"),
    "detector": (230, 20, 180, 54, "backbone, RPN, RoI head", "region features"),
    "clip": (470, 92, 170, 54, "CLIP of the regions", "frozen"),
    "wd": (470, 20, 170, 54, "W_D, unit rows", "distilled, then frozen"),
    "wp": (470, 184, 170, 54, "W_P = W_T(W_D) + skip", "weight transfer"),
    "rkd": (720, 58, 220, 54, "L1 and relation (IRM)", "RKD"),
    "pms": (720, 256, 220, 54, "BCE at the pseudo box", "PIS"),
    "box": (720, 157, 220, 54, "classes, boxes, proposals", "supervised"),
}
"""Name → left, top, width, height, text, small text."""
_ARROWS = (
    ("M180 47 H226", "det → detector"),
    ("M180 57 C205 57 205 112 226 116", "det → all"),
    ("M180 272 C205 272 205 215 226 211", "cls → every"),
    ("M180 266 C212 240 190 140 226 128", "cls → all"),
    ("M410 47 H466", "detector → wd"),
    ("M410 119 H466", "all → clip"),
    ("M410 62 C448 78 430 190 466 203", "detector → wp"),
    ("M640 47 C690 47 690 74 716 78", "wd → rkd"),
    ("M640 119 C690 119 690 96 716 92", "clip → rkd"),
    ("M625 74 C668 104 668 154 625 180", "wd → wp"),
    ("M640 203 C680 203 680 187 716 185", "wp → box"),
    ("M640 221 C680 226 680 274 716 279", "wp → pms"),
    ("M320 238 C340 296 560 292 716 287", "every → pms"),
)
_LOSSES = ("rkd", "pms", "box")


def pipeline_picture() -> str:
    """One SVG; colours are variables of the page."""
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="Training, stage by stage" '
        'font-family="system-ui, Arial, sans-serif" xmlns="http://www.w3.org/2000/svg">',
        '<defs><marker id="head" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 L8 4 L0 8 z" fill="var(--muted)"/></marker></defs>',
    ]
    for path, label in _ARROWS:
        parts.append(
            f'<path d="{path}" fill="none" stroke="var(--muted)" stroke-width="1.3" marker-end="url(#head)">'
            f"<title>{label}</title></path>"
        )
    for name, (left, top, width, height, text, small) in _BOXES.items():
        stroke = "var(--novel)" if name in _LOSSES else "var(--base)"
        middle = left + width / 2
        parts.append(
            f'<rect x="{left}" y="{top}" width="{width}" height="{height}" rx="7" fill="var(--paper)" '
            f'stroke="{stroke}" stroke-width="1.4"/>'
            f'<text x="{middle:g}" y="{top + 24}" text-anchor="middle" font-size="13" fill="var(--ink)">'
            f"{html.escape(text)}</text>"
            f'<text x="{middle:g}" y="{top + 42}" text-anchor="middle" font-size="11.5" fill="var(--muted)">'
            f"{html.escape(small)}</text>"
        )
    return "".join(parts) + "</svg>"
