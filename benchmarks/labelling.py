"""RKD and PIS labels of an image at full size, against the path of the official scripts, on the same machine.

    python benchmarks/labelling.py --goldens ../shared/goldens --out benchmarks/results/labelling.json

Both sides run the same networks with the same weights (MAVL R101 at 800 px, CLIP ViT-B/32 at 224 px; weights made from
the tensor names by the goldens' rule, so nothing is downloaded and nothing here says how good the labels are).
The official path as its scripts walk it: the picture is opened and resized and goes through the whole of MAVL once a
query, four class-agnostic queries and one a tag, then crop by crop through CLIP. Ours: one pass, all queries fused in
one batch, all crops in one batch. Times alternate, official first; medians over the images.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ovbridge.label_store import NamedBoxes
from ovbridge.labeling.labellers import JointLabeller, RegionLabeller, TagLabeller
from ovbridge.labeling.pseudo_boxes import SelectionConfig, suppress
from ovbridge.structures import RegionTargets
from ovbridge.teachers.clip import ClipTeacher
from ovbridge.teachers.mavl.config import mavl_full
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.proposer import MavlProposer
from ovbridge.teachers.mavl.samples import batch_pixels, resize
from ovbridge.teachers.mavl.text import pad_tokens
from ovbridge.teachers.mavl.weights import mavl_from_state, our_name
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, class_query

TAGS = ("hot dog", "teddy bear", "umbrella")


def weight_rule(goldens: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("golden_weights", goldens / "weights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build_mavl(goldens: Path, rule: ModuleType) -> Mavl:
    shapes = json.loads((goldens / "mavl_state_dict.json").read_text())
    state = {
        ours: torch.from_numpy(rule.value(name, record["shape"]))
        for name, record in shapes.items()
        if (ours := our_name(name)) is not None
    }
    return mavl_from_state(mavl_full(), state, source="golden weights")


def build_clip(rule: ModuleType) -> ClipTeacher:
    import open_clip

    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim:
                tensor.copy_(torch.from_numpy(rule.value(name, tuple(tensor.shape))).to(tensor.dtype))
    return ClipTeacher(
        model,
        open_clip.get_tokenizer("ViT-B-32-quickgelu"),
        name="ViT-B-32-quickgelu, weights by name",
        digest="0",
        image_size=224,
        embedding_dim=512,
        device=torch.device("cpu"),
    )


def tokens_of(text: str) -> list[int]:
    """Made-up ids, one a word: the goldens carry no tokenizer either, and the time does not depend on them."""
    return [0, *(4 + sum(map(ord, word)) * 37 % 50_000 for word in text.split()), 2]


class OfficialPath:
    """Re-enacted from the released scripts: nothing is shared between two queries."""

    def __init__(self, model: Mavl, clip: ClipTeacher) -> None:
        self.model, self.clip = model, clip

    @torch.inference_mode()
    def infer_image(self, file: Path, text: str) -> tuple[Tensor, Tensor]:
        image = np.asarray(Image.open(file).convert("RGB"))
        pixels, _ = batch_pixels([resize(image, 800)])
        encoded = self.model.encode(pixels)
        ids, padding = pad_tokens([tokens_of(text)])
        states = self.model.fuse(
            encoded, torch.zeros(1, dtype=torch.int64), self.model.encode_text(ids, padding), padding
        )
        scores = 1.0 - self.model.token_logits(states[-1])[0].softmax(dim=-1)[:, -1]
        x, y, w, h = self.model.boxes(states[-1], encoded.reference)[0].unbind(-1)
        corners = torch.stack([x - w / 2, y - h / 2, x + w / 2, y + h / 2], dim=-1)
        height, width = image.shape[:2]
        return (corners * torch.tensor([width, height, width, height])).trunc(), scores

    def regions(self, file: Path, top: int = 5) -> RegionTargets:
        boxes, scores = [], []
        for query in CLASS_AGNOSTIC_QUERIES:
            found, score = self.infer_image(file, query)
            best = score.argsort(descending=True)[:50]
            boxes.append(found[best])
            scores.append(score[best])
        all_boxes, all_scores = torch.cat(boxes), torch.cat(scores)
        kept = suppress(all_boxes, all_scores, 0.5, last_pixel_inside=True)[:top]
        image = Image.open(file).convert("RGB")
        embeddings = []
        for box in all_boxes[kept].tolist():
            crop = np.asarray(image.crop(tuple(int(v) for v in box)))
            embeddings.append(self.clip.embed_crops([crop]))
        return RegionTargets(boxes_xyxy=all_boxes[kept], embeddings=torch.cat(embeddings), scores=all_scores[kept])

    def tags(self, file: Path, names: tuple[str, ...]) -> NamedBoxes:
        best = []
        for name in names:
            boxes, scores = self.infer_image(file, class_query(name))
            place = int(scores.argmax())
            best.append((boxes[place], float(scores[place])))
        return NamedBoxes(
            names=names, boxes_xyxy=torch.stack([b for b, _ in best]), scores=torch.tensor([s for _, s in best])
        )


def ours(model: Mavl, clip: ClipTeacher, names_of: dict[str, tuple[str, ...]], device: torch.device) -> JointLabeller:
    words: Any = SimpleNamespace(encode_batch=lambda texts: [SimpleNamespace(ids=tokens_of(text)) for text in texts])
    proposer = MavlProposer(model, words, name="golden", trained_on="nothing", digest="0", device=device)
    selection = SelectionConfig(paper_exact=True)
    return JointLabeller(
        regions=RegionLabeller(proposer=proposer, encoder=clip, selection=selection),
        tags=TagLabeller(proposer=proposer, names_of=names_of, threshold=0.0, paper_exact=True),
    )


def differences(official: tuple[RegionTargets, NamedBoxes], found: Any) -> dict[str, float]:
    regions, tags = official
    mine_regions, mine_tags = found["regions"], found["tags"]
    cosine = torch.nn.functional.cosine_similarity(regions.embeddings, mine_regions.embeddings)
    return {
        "boxes_px": float(
            max(
                (regions.boxes_xyxy - mine_regions.boxes_xyxy).abs().max(),
                (tags.boxes_xyxy - mine_tags.boxes_xyxy).abs().max(),
            )
        ),
        "scores": float(
            max((regions.scores - mine_regions.scores).abs().max(), (tags.scores - mine_tags.scores).abs().max())
        ),
        "embeddings": float((regions.embeddings - mine_regions.embeddings).abs().max()),
        "embedding_size": float(regions.embeddings.abs().max()),
        "lowest_cosine": float(cosine.min()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--goldens", type=Path, required=True, help="folder with weights.py, mavl_state_dict.json, images"
    )
    parser.add_argument("--images", type=int, default=1)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rule = weight_rule(arguments.goldens)
    model, clip = build_mavl(arguments.goldens, rule), build_clip(rule)
    files = [arguments.goldens / "images" / f"img{i}.png" for i in range(arguments.images)]
    official = OfficialPath(model, clip)
    labeller = ours(model, clip, {file.name: TAGS for file in files}, torch.device("cpu"))
    runs = []
    for file in files:
        seconds = {}
        # Processor time as well: on a machine that others use too, it is the steadier of the two.
        started, used = time.perf_counter(), time.process_time()
        regions = official.regions(file)
        seconds["official_rkd"] = time.perf_counter() - started
        tags = official.tags(file, TAGS)
        seconds["official"], seconds["official_cpu"] = time.perf_counter() - started, time.process_time() - used
        started, used = time.perf_counter(), time.process_time()
        (found,) = labeller.label([file.name], [np.asarray(Image.open(file).convert("RGB"))])
        seconds["ours"], seconds["ours_cpu"] = time.perf_counter() - started, time.process_time() - used
        run = {
            "image": file.name,
            "seconds": {name: round(value, 3) for name, value in seconds.items()},
            "ratio": round(seconds["official"] / seconds["ours"], 2),
            "ratio_cpu": round(seconds["official_cpu"] / seconds["ours_cpu"], 2),
            "difference": differences((regions, tags), found),
        }
        print(json.dumps(run), flush=True)
        runs.append(run)
    summary = {
        "what": f"4 class-agnostic queries + {len(TAGS)} tags, 5 crops; MAVL R101 at 800 px, CLIP ViT-B/32, fp32",
        "ratio": statistics.median(run["ratio"] for run in runs),
        "ratio_cpu": statistics.median(run["ratio_cpu"] for run in runs),
        "runs": runs,
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "processor": next(
            (r.split(":")[1].strip() for r in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in r), ""
        ),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
        "bf16": "not measured: this processor has no bf16 instructions"
        if not torch.ops.mkldnn._is_mkldnn_bf16_supported()
        else "not measured by this script",
    }
    print(json.dumps({key: summary[key] for key in ("ratio", "ratio_cpu", "threads")}))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
