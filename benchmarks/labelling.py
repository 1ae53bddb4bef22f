"""RKD and PIS labels of an image at full size, in fp32 and bf16, against the path of the official scripts.

    python benchmarks/labelling.py --goldens ../shared/goldens --threads 1 --out benchmarks/results/labelling.json

All sides run the same networks with the same weights (MAVL R101 at 800 px, CLIP ViT-B/32 at 224 px; weights made from
the tensor names by the goldens' rule, so nothing is downloaded and nothing here says how good the labels are).
The official path as its scripts walk it, in fp32: the picture is opened and resized and goes through the whole of MAVL
once a query, four class-agnostic queries and one a tag, deformable attention by `grid_sample` as in the released code
without its CUDA operator; then crop by crop through CLIP. Ours: one pass, all queries fused in one batch, all crops in
one batch. All in one run on the same threads, official first; processor time beside the clock, because other
processes may run meanwhile. Weights that mean nothing give scores that nearly tie, so how far bf16 moves labels is
measured on the built-in teachers, which are trained, as well (`trained`).
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.ops import box_iou

from ovbridge.allocator import keep_freed_memory
from ovbridge.device import Precision, bf16_pays
from ovbridge.images import read_image
from ovbridge.label_run import LabellingPlan, TeacherChoice
from ovbridge.label_store import NamedBoxes
from ovbridge.labeling.labellers import JointLabeller, RegionLabeller, TagLabeller
from ovbridge.labeling.pseudo_boxes import SelectionConfig, suppress
from ovbridge.labeling.region_embeddings import embed_boxes
from ovbridge.labeling.sources import image_keys_in
from ovbridge.structures import RegionTargets
from ovbridge.teachers.clip import ClipTeacher
from ovbridge.teachers.mavl import deformable_attention, transformer
from ovbridge.teachers.mavl.config import mavl_full
from ovbridge.teachers.mavl.inference import prepare_for_labelling
from ovbridge.teachers.mavl.model import Mavl
from ovbridge.teachers.mavl.proposer import MavlProposer
from ovbridge.teachers.mavl.samples import batch_pixels, resize
from ovbridge.teachers.mavl.text import pad_tokens
from ovbridge.teachers.mavl.weights import mavl_from_state, our_name
from ovbridge.teachers.protocol import CLASS_AGNOSTIC_QUERIES, class_query
from ovbridge.world.write import write_world

TAGS = ("hot dog", "teddy bear", "umbrella")
CPU = torch.device("cpu")


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


def build_clip(rule: ModuleType) -> dict[Precision, ClipTeacher]:
    """The same weights in both precisions."""
    import open_clip

    model = open_clip.create_model("ViT-B-32-quickgelu", pretrained=None)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point() and tensor.ndim:
                tensor.copy_(torch.from_numpy(rule.value(name, tuple(tensor.shape))).to(tensor.dtype))
    precisions: tuple[Precision, ...] = ("fp32", "bf16")
    return {
        precision: ClipTeacher(
            model,
            open_clip.get_tokenizer("ViT-B-32-quickgelu"),
            name="ViT-B-32-quickgelu, weights by name",
            digest="0",
            image_size=224,
            embedding_dim=512,
            device=CPU,
            precision=precision,
        )
        for precision in precisions
    }


def tokens_of(text: str) -> list[int]:
    """Made-up ids, one a word: the goldens carry no tokenizer either, and the time does not depend on them."""
    return [0, *(4 + sum(map(ord, word)) * 37 % 50_000 for word in text.split()), 2]


@contextmanager
def sampling_by_grid() -> Iterator[None]:
    """Deformable attention as the released code computes it where its CUDA operator is missing."""
    with (
        patch.object(deformable_attention, "reads_tables", lambda _: False),
        patch.object(transformer, "reads_tables", lambda _: False),
    ):
        yield


class OfficialPath:
    """Re-enacted from the released scripts: nothing is shared between two queries."""

    def __init__(self, model: Mavl, clip: ClipTeacher) -> None:
        self.model, self.clip = model, clip
        self.query_seconds: list[float] = []
        """Processor time of each pass."""

    def infer_image(self, file: Path, text: str) -> tuple[Tensor, Tensor]:
        used = time.process_time()
        with torch.inference_mode(), sampling_by_grid():
            found = self._infer_image(file, text)
        self.query_seconds.append(round(time.process_time() - used, 2))
        print(f"official path, {text}: {self.query_seconds[-1]} s of processor time", flush=True)
        return found

    def _infer_image(self, file: Path, text: str) -> tuple[Tensor, Tensor]:
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
            crop = np.asarray(image.crop((int(box[0]), int(box[1]), int(box[2]), int(box[3]))))
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


def ours(model: Mavl, clip: ClipTeacher, names_of: dict[str, tuple[str, ...]], precision: Precision) -> JointLabeller:
    words: Any = SimpleNamespace(encode_batch=lambda texts: [SimpleNamespace(ids=tokens_of(text)) for text in texts])
    proposer = MavlProposer(
        model, words, name="golden", trained_on="nothing", digest="0", device=CPU, precision=precision
    )
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


def movement(exact: Any, found: Any) -> dict[str, float | list[float]]:
    """How far the labels of an image moved: its regions against the region that overlaps each most."""
    iou = box_iou(exact["regions"].boxes_xyxy, found["regions"].boxes_xyxy)
    best, partner = iou.max(dim=1)
    cosine = torch.nn.functional.cosine_similarity(exact["regions"].embeddings, found["regions"].embeddings[partner])
    same = [(t, f) for t, f in zip(exact["tags"].boxes_xyxy, found["tags"].boxes_xyxy, strict=True)]
    return {
        "regions_iou": [round(v, 4) for v in best.tolist()],
        "regions_iou_by_rank": [round(v, 4) for v in iou.diagonal().tolist()],
        "regions_cosine": [round(v, 5) for v in cosine.tolist()],
        "tags_iou": [round(float(box_iou(t[None], f[None])), 4) for t, f in same],
    }


def timed(work: Any) -> tuple[Any, dict[str, float]]:
    """What `work` returns, with seconds by the clock and of the processor."""
    started, used = time.perf_counter(), time.process_time()
    result = work()
    return result, {
        "clock": round(time.perf_counter() - started, 3),
        "processor": round(time.process_time() - used, 3),
    }


def trained(images: int) -> dict[str, Any]:
    """The built-in teachers on pictures of the world: top-5 regions in bf16 against fp32."""
    with tempfile.TemporaryDirectory() as scratch:
        write_world(Path(scratch), train=images, val=1, seed=11, image_labels_per_class=0)
        folder = Path(scratch) / "train2017"
        keys = image_keys_in(folder)
        pictures = [read_image(folder / key) for key in keys]
        by_precision: dict[Precision, list[RegionTargets]] = {}
        same_boxes: list[float] = []
        precisions: tuple[Precision, ...] = ("fp32", "bf16")
        for precision in precisions:
            plan = LabellingPlan(teachers=TeacherChoice(device="cpu", precision=precision), regions=True)
            labeller = plan.build()
            labels = [found["regions"] for found in labeller.label(keys, pictures)]
            by_precision[precision] = [targets for targets in labels if isinstance(targets, RegionTargets)]
            exact = by_precision["fp32"]
            if precision == "bf16" and isinstance(labeller, RegionLabeller):
                again = embed_boxes(pictures, [t.boxes_xyxy for t in exact], labeller.encoder, labeller.crop_rule)
                for targets, embeddings in zip(exact, again, strict=True):
                    same_boxes += torch.nn.functional.cosine_similarity(targets.embeddings, embeddings).tolist()
    iou, cosine, rank = [], [], []
    for a, b in zip(by_precision["fp32"], by_precision["bf16"], strict=True):
        if len(a) == 0 or len(b) == 0:
            continue
        overlap = box_iou(a.boxes_xyxy, b.boxes_xyxy)
        best, partner = overlap.max(dim=1)
        iou += best.tolist()
        cosine += torch.nn.functional.cosine_similarity(a.embeddings, b.embeddings[partner])[best >= 0.9].tolist()
        rank += overlap.diagonal().tolist()
    return {
        "regions": len(iou),
        "share_iou_above_0.9": round(float(np.mean(np.array(iou) >= 0.9)), 4),
        "share_iou_above_0.9_at_the_same_rank": round(float(np.mean(np.array(rank) >= 0.9)), 4),
        "median_iou": round(float(np.median(iou)), 4),
        "share_cosine_above_0.99": round(float(np.mean(np.array(cosine) >= 0.99)), 4),
        "lowest_cosine": round(min(cosine), 5),
        "median_cosine": round(float(np.median(cosine)), 5),
        "lowest_cosine_of_the_same_boxes": round(min(same_boxes), 5),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--goldens", type=Path, required=True, help="folder with weights.py, mavl_state_dict.json, images"
    )
    parser.add_argument("--image", default="img0.png", help="one of the goldens' images")
    parser.add_argument("--repeats", type=int, default=3, help="times that our way is measured")
    parser.add_argument("--trained-images", type=int, default=40)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    keep_freed_memory()  # as the program does
    torch.set_num_threads(arguments.threads)
    rule = weight_rule(arguments.goldens)
    model, clip = build_mavl(arguments.goldens, rule), build_clip(rule)
    file = arguments.goldens / "images" / arguments.image
    official = OfficialPath(model, clip["fp32"])
    (regions, tags), official_seconds = timed(lambda: (official.regions(file), official.tags(file, TAGS)))
    summary: dict[str, Any] = {
        "what": f"4 class-agnostic queries + {len(TAGS)} tags, 5 crops; MAVL R101 at 800 px, CLIP ViT-B/32",
        "image": file.name,
        "official_fp32": {"seconds": official_seconds, "processor_seconds_a_query": official.query_seconds},
    }
    found: dict[str, Any] = {}
    precisions: list[Precision] = ["fp32", "bf16"] if bf16_pays(CPU) else ["fp32"]
    for precision in precisions:
        # In place, one after the other: the weights are large, and the official path is done with them.
        prepared = prepare_for_labelling(model, precision)
        runs = []
        for _ in range(arguments.repeats):
            # A new proposer each time: texts are encoded once a proposer, and the first image pays for them.
            labeller = ours(prepared, clip[precision], {file.name: TAGS}, precision)

            def label(labeller: JointLabeller = labeller) -> Any:
                return labeller.label([file.name], [np.asarray(Image.open(file).convert("RGB"))])[0]

            found[precision], seconds = timed(label)
            print(f"ours, {precision}: {seconds}", flush=True)
            runs.append(seconds)
        middle = {kind: statistics.median(run[kind] for run in runs) for kind in ("clock", "processor")}
        summary[f"ours_{precision}"] = {
            "seconds": middle,
            "runs": runs,
            "ratio": {kind: round(official_seconds[kind] / middle[kind], 2) for kind in middle},
        }
    summary["ours_fp32"]["difference"] = differences((regions, tags), found["fp32"])
    if "bf16" in found:
        summary["ours_bf16"]["against_fp32"] = movement(found["fp32"], found["bf16"])
        summary["ours_bf16"]["trained"] = trained(arguments.trained_images)
    summary |= {
        "threads": torch.get_num_threads(),
        "load_average": os.getloadavg(),
        "processor": next(
            (r.split(":")[1].strip() for r in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in r), ""
        ),
        "bf16_instructions": bf16_pays(CPU),
        "versions": {"python": platform.python_version(), "torch": str(torch.__version__)},
    }
    print(json.dumps({key: summary[key].get("ratio") for key in summary if key.startswith("ours")}))
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        arguments.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
