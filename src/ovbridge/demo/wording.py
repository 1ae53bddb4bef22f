"""What the report of a demo run says in words."""

from __future__ import annotations

import shlex

from ovbridge.demo.settings import DemoSettings
from ovbridge.world.nouns import NOUNS


def lead(settings: DemoSettings, evaluated: int) -> str:
    """The sentences below the title."""
    base, novel = (sum(noun.role == role for noun in NOUNS) for role in ("base", "novel"))
    return (
        f"{base} classes of drawn objects have boxes to learn from, {novel} have none: they stand in the training "
        f"pictures unmarked, and as single pictures in labelled folders. Trained on {settings.train_images:,} scenes, "
        f"evaluated on {evaluated:,} others."
    )


_BEYOND = (
    "The last stage goes beyond the paper in two things: pseudo boxes, moved at random, also teach the way back (box "
    "regression), and regions of training scenes that CLIP names surely count as boxes of classes that have labels "
    "only. ‘ovbridge demo --as-published’ leaves both out."
)


def differs(settings: DemoSettings, proposer_trained_on: str) -> list[str]:
    """How this experiment differs from the paper's."""
    compared = "first version (40.3)" if settings.proposer == "builtin-full" else "final version (36.6)"
    return [
        "Pictures: drawn scenes of about 320 × 240 pixels here, photographs of COCO there.",
        "Detector: a narrow ResNet-18 with a feature pyramid here, pretrained on objects of other "
        "drawn scenes (boxes and names of base and unused nouns; of novel ones only what single pictures show, as "
        "ImageNet shows most novel classes of COCO; docs/teachers.md says all it saw), then some hundred steps a "
        "stage; Faster R-CNN R50-C4 from "
        "ImageNet weights for 90,000 steps on 8 GPUs there.",
        "Teachers: a small CLIP and a small MAVL trained on drawn pictures here; CLIP ViT-B/32 and MAVL there.",
        "Image-level labels: folders with one label each here, labels read out of COCO captions there.",
        f"The proposer here was trained on: {proposer_trained_on}. The figures beside are those of the paper’s "
        f"{compared}, whose proposer was trained alike.",
        *([_BEYOND] if settings.beyond and "rkd_pis_wt" in settings.stages else []),
        "So compare the pattern: what each stage adds, and novel ÷ base.",
    ]


def methods(*, recall_images: int, regions: int, shown_score: float) -> dict[str, str]:
    """How each number of the page was measured."""
    return {
        "AP50, AP": "COCO’s average precision, in percent, at IoU 0.5 and averaged over IoU 0.5 to 0.95; at most 100 "
        "detections a picture, scores from 0.05. The classifier holds the names of all 80 classes; base, novel and "
        "all are means over the classes (all: base and novel together).",
        "Example pictures": "The validation pictures with the most different base and novel classes in them, whatever "
        f"was found there; detections that score at least {shown_score}.",
        "Precision and recall": "Precision at 101 levels of recall at IoU 0.5, made monotonic as in COCO’s AP, mean "
        "over classes.",
        "Recall of proposals": f"Share of the objects in {recall_images} validation pictures that the 5 or 50 best "
        "boxes of a picture find at IoU 0.5, one box for one object. The RPN is that of the base stage; the text-"
        "driven proposer answers four class-agnostic queries, 50 boxes each, merged by NMS at IoU 0.5.",
        "Similarity, t-SNE, purity": f"{regions} true boxes of novel objects in validation pictures; CLIP sees their "
        "crops, the stages pool them from their features; all compared by cosine. Purity: mean share of the five "
        "nearest neighbours that are of the same class.",
        "Scores": "Detections matched to a true box of their class at IoU 0.5, best first.",
        "Time": "Wall clock of each step on this machine, summed over restarts.",
    }


def command(settings: DemoSettings) -> str:
    """The command that makes the same run."""
    words = ["ovbridge", "demo", "--seed", str(settings.seed), "--stages", ",".join(settings.stages)]
    words += ["--train-images", str(settings.train_images), "--val-images", str(settings.val_images)]
    words += ["--image-labels", str(settings.image_labels_per_class), "--proposer", settings.proposer]
    # Always: its default depends on the processor.
    words += ["--clip", settings.clip, "--effort", f"{settings.effort:g}"]
    if not settings.beyond:
        words += ["--as-published"]
    if settings.overrides:
        words += ["--set", *settings.overrides]
    return shlex.join(words)
