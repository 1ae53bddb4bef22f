"""The strict protocol in the built-in world: labelled pictures of every class that is not novel.

The pictures of the base classes are those of the world's own label folders; the classes that the protocol does not
use get as many.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ovbridge.ablate.settings import WorldSettings
from ovbridge.console import track
from ovbridge.data.ovd_files import write_once
from ovbridge.data.strict_files import LABELS_FILE, write_strict
from ovbridge.world.nouns import NOUNS
from ovbridge.world.render import render_scene
from ovbridge.world.scene import compose_label_scene
from ovbridge.world.write import JPEG_QUALITY, LABEL_CODE, categories


def write_strict_labels(out: Path, train_annotations: Path, world: WorldSettings) -> Path:
    """Paint the pictures into OUT/image_labels and write the two strict files; returns their folder, OUT."""
    if (out / LABELS_FILE).exists():
        return out
    count = world.image_labels_per_class
    jobs = [(k, noun, i) for k, noun in enumerate(NOUNS) if noun.role != "novel" for i in range(count)]
    images: list[dict[str, Any]] = []
    for k, noun, i in track(jobs, "paint strict labels", len(jobs)):
        scene = compose_label_scene(np.random.default_rng((world.seed, LABEL_CODE, k, i)), k)
        name = f"{noun.name.replace(' ', '_')}/{i + 1:04d}.jpg"
        path = out / "image_labels" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            aside = path.with_suffix(".part")
            Image.fromarray(render_scene(scene)).save(aside, format="JPEG", quality=JPEG_QUALITY)
            aside.replace(path)
        size = {"width": scene.width, "height": scene.height}
        images.append({"id": len(images) + 1, "file_name": name, **size, "pos_category_ids": [k + 1]})
    known = [c for c in categories() if c["role"] != "novel"]
    source = out / "all_labels.json"
    write_once(source, json.loads(json.dumps({"images": images, "annotations": [], "categories": known})))
    write_strict(train_annotations, source, out, seed=world.seed)
    return out
