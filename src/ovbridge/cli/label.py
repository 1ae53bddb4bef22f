"""`ovbridge label`: pseudo boxes, CLIP embeddings and text banks into a label store."""

from __future__ import annotations

import json as json_format
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ovbridge.cli.arguments import call, pick
from ovbridge.errors import ConfigError

if TYPE_CHECKING:
    from ovbridge.label_run import LabellingPlan
    from ovbridge.labeling.run import RunSettings, RunSummary

PARTS = {
    "regions": "class-agnostic boxes with the CLIP embedding of each crop (RKD targets)",
    "tags": "the best 'every <name>' box of each label of an image (PIS targets)",
    "all": "regions and tags in one pass: every image is encoded once",
    "text": "a text bank: the CLIP embedding of each class name",
    "status": "progress, failures by cause and rate of a store",
}
REGIONS_EXAMPLES = """\
ovbridge label regions --images data/world/train2017 --store runs/labels
ovbridge label regions --images photos --store labels --proposer mavl.safetensors --clip ViT-B-32-quickgelu/openai
ovbridge label regions --images coco/train2017 --store labels-owl --proposer hf:google/owlv2-base-patch16-ensemble
ovbridge label regions --images photos --store labels-rpn --proposer rpn:runs/demo/detector.safetensors
ovbridge label regions --images coco/train2017 --store labels-paper --proposer boxes:classagnostic_distilfeats"""
TAGS_EXAMPLES = """\
ovbridge label tags --images coco/train2017 --annotations coco/annotations/captions_train2017.json --store labels
ovbridge label tags --images world/image_labels --annotations world/annotations/image_labels.json --store labels"""
ALL_EXAMPLES = """\
ovbridge label all --images coco/train2017 --annotations coco/annotations/captions_train2017.json --store labels"""
TEXT_EXAMPLES = """\
ovbridge label text --names "red mug,scissors" --store labels
ovbridge label text --names "red mug,scissors" --template imagenet-80 --name ensemble --store labels
ovbridge label text --annotations coco/annotations/instances_val2017.json --npy coco_clip.npy --store labels"""
STATUS_EXAMPLES = "ovbridge label status runs/labels --json"

CropRuleName = Literal["tight", "square", "ensemble-1.5", "masked"]
EngineName = Literal["local", "ray"]
PrecisionName = Literal["fp32", "bf16", "fp16", "auto"]


def run(argv: Sequence[str]) -> None:
    """Parse and call."""
    part = pick(argv, "ovbridge label", PARTS)
    functions: dict[str, tuple[Callable[..., None], str]] = {
        "regions": (regions, REGIONS_EXAMPLES),
        "tags": (tags, TAGS_EXAMPLES),
        "all": (regions_and_tags, ALL_EXAMPLES),
        "text": (text, TEXT_EXAMPLES),
        "status": (status, STATUS_EXAMPLES),
    }
    function, examples = functions[part]
    call(function, argv[1:], verb=f"label {part}", examples=examples)


def regions(
    *,
    images: Path,
    store: Path,
    proposer: str = "builtin",
    clip: str = "builtin",
    crop_rule: CropRuleName = "tight",
    top_k: int = 5,
    paper_exact: bool = False,
    trained_on: str | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
    teachers: int | None = None,
    batch: int = 8,
    threads: int = 2,
    shard: str = "0/1",
    max_failed: float = 0.05,
    retry_failed: bool = False,
    precision: PrecisionName = "fp32",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Find the objects of every image and embed their crops with CLIP.

    Given again, the same command goes on where it stopped.

    Args:
        images: Folder of images; subfolders too.
        store: Label store to write to; made if need be.
        proposer: builtin (never saw a novel name), builtin-full, a MAVL weights file, hf:NAME_OR_FOLDER (Grounding
            DINO, MM-Grounding-DINO, OWLv2), rpn:CHECKPOINT (a detector of ours) or boxes:FILE (proposed before).
        clip: Image encoder: builtin, a weights file, MODEL/TAG or MODEL:FILE of open_clip, or a folder of open_clip's.
        crop_rule: What CLIP sees of a box: tight (the paper's), square with context, the mean of 1x and 1.5x, or
            masked attention.
        top_k: Regions kept per image.
        paper_exact: Whole-pixel boxes, not clipped to the image, and the old NMS convention.
        trained_on: What the proposer has seen, for the leak audit; by default what its file or family declares.
        engine: Where to run: on this machine, or on a Ray cluster.
        ray_address: Ray cluster to join; by default RAY_ADDRESS, else a cluster of its own on this machine.
        teachers: With Ray: teachers at work at once; by default one a GPU, or one for 4 cores.
        batch: Images of equal size that go through the teacher together.
        threads: Threads that read images.
        shard: i/n: only the i-th of n parts, counted from 0; n commands may share one store.
        max_failed: Largest share of images that may fail.
        retry_failed: Take up images that failed before.
        precision: What the teachers compute in: fp32, bf16 (several times faster where the hardware has it), fp16,
            or auto: bf16 where it pays.
        device: auto, cpu or cuda.
        json: Print the result as JSON.
    """
    from ovbridge.label_run import LabellingPlan, TeacherChoice
    from ovbridge.labeling.pseudo_boxes import SelectionConfig
    from ovbridge.labeling.sources import image_keys_in

    settings = _settings(batch, threads, shard, max_failed, retry_failed)
    keys = image_keys_in(images)
    plan = LabellingPlan(
        teachers=TeacherChoice(proposer=proposer, clip=clip, trained_on=trained_on, device=device, precision=precision),
        regions=True,
        selection=SelectionConfig(top_k=top_k, paper_exact=paper_exact),
        crop_rule=crop_rule,
    )
    _label(plan, store, images, keys, settings, _Where(engine, ray_address, teachers), json)


def tags(
    *,
    images: Path,
    annotations: Path,
    store: Path,
    proposer: str = "builtin",
    threshold: float | None = None,
    size_weight: float = 0.0,
    names_from: Path | None = None,
    rule: Literal["words", "paper"] = "words",
    paper_exact: bool = False,
    trained_on: str | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
    teachers: int | None = None,
    batch: int = 8,
    threads: int = 2,
    shard: str = "0/1",
    max_failed: float = 0.05,
    retry_failed: bool = False,
    precision: PrecisionName = "fp32",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Find the best box of every label that an image is known to have.

    Given again, the same command goes on where it stopped.

    Args:
        images: Folder of images.
        annotations: COCO JSON whose images carry captions or pos_category_ids, or a captions JSON.
        store: Label store to write to; made if need be.
        proposer: As for 'label regions'; it must know names, so no rpn.
        threshold: Boxes scored higher are kept; by default 0.95 for captions, 0 for labels, as in the paper.
        size_weight: Rank boxes by score * area^this; 0 as in the paper. 0.3 suits pictures of one thing.
        names_from: Annotation file with the categories to look for; by default the file itself or its instances twin.
        rule: How captions name classes: by words with plurals and synonyms, or the paper's substring rule.
        paper_exact: Whole-pixel boxes, not clipped to the image.
        trained_on: What the proposer has seen, for the leak audit; by default what its file or family declares.
        engine: Where to run: on this machine, or on a Ray cluster.
        ray_address: Ray cluster to join; by default RAY_ADDRESS, else a cluster of its own on this machine.
        teachers: With Ray: teachers at work at once; by default one a GPU, or one for 4 cores.
        batch: Images of equal size that go through the teacher together.
        threads: Threads that read images.
        shard: i/n: only the i-th of n parts, counted from 0; n commands may share one store.
        max_failed: Largest share of images that may fail.
        retry_failed: Take up images that failed before.
        precision: What the teachers compute in: fp32, bf16 (several times faster where the hardware has it), fp16,
            or auto: bf16 where it pays.
        device: auto, cpu or cuda.
        json: Print the result as JSON.
    """
    from ovbridge.label_run import LabellingPlan, TeacherChoice
    from ovbridge.labeling.pseudo_boxes import SelectionConfig

    settings = _settings(batch, threads, shard, max_failed, retry_failed)
    names_of, usual_threshold = _known_names(images, annotations, names_from, rule)
    plan = LabellingPlan(
        teachers=TeacherChoice(proposer=proposer, trained_on=trained_on, device=device, precision=precision),
        names_of=names_of,
        selection=SelectionConfig(paper_exact=paper_exact),
        threshold=usual_threshold if threshold is None else threshold,
        size_weight=size_weight,
    )
    _label(plan, store, images, list(names_of), settings, _Where(engine, ray_address, teachers), json)


def regions_and_tags(
    *,
    images: Path,
    annotations: Path,
    store: Path,
    proposer: str = "builtin",
    clip: str = "builtin",
    crop_rule: CropRuleName = "tight",
    top_k: int = 5,
    threshold: float | None = None,
    size_weight: float = 0.0,
    names_from: Path | None = None,
    rule: Literal["words", "paper"] = "words",
    paper_exact: bool = False,
    trained_on: str | None = None,
    engine: EngineName = "local",
    ray_address: str | None = None,
    teachers: int | None = None,
    batch: int = 8,
    threads: int = 2,
    shard: str = "0/1",
    max_failed: float = 0.05,
    retry_failed: bool = False,
    precision: PrecisionName = "fp32",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Make regions and tags in one pass over the images: what 'label regions' and 'label tags' make, in half the time.

    Every image of the folder gets regions, those with known labels also tags. Given again, the same command goes on
    where it stopped.

    Args:
        images: Folder of images; subfolders too.
        annotations: COCO JSON whose images carry captions or pos_category_ids, or a captions JSON.
        store: Label store to write to; made if need be.
        proposer: As for 'label regions'; it must know names, so no rpn.
        clip: Image encoder, as for 'label regions'.
        crop_rule: What CLIP sees of a box, as for 'label regions'.
        top_k: Regions kept per image.
        threshold: Tag boxes scored higher are kept; by default 0.95 for captions, 0 for labels, as in the paper.
        size_weight: Rank boxes by score * area^this; 0 as in the paper. 0.3 suits pictures of one thing.
        names_from: Annotation file with the categories to look for; by default the file itself or its instances twin.
        rule: How captions name classes: by words with plurals and synonyms, or the paper's substring rule.
        paper_exact: Whole-pixel boxes, not clipped to the image, and the old NMS convention.
        trained_on: What the proposer has seen, for the leak audit; by default what its file or family declares.
        engine: Where to run: on this machine, or on a Ray cluster.
        ray_address: Ray cluster to join; by default RAY_ADDRESS, else a cluster of its own on this machine.
        teachers: With Ray: teachers at work at once; by default one a GPU, or one for 4 cores.
        batch: Images of equal size that go through the teacher together.
        threads: Threads that read images.
        shard: i/n: only the i-th of n parts, counted from 0; n commands may share one store.
        max_failed: Largest share of images that may fail.
        retry_failed: Take up images that failed before.
        precision: What the teachers compute in: fp32, bf16 (several times faster where the hardware has it), fp16,
            or auto: bf16 where it pays.
        device: auto, cpu or cuda.
        json: Print the result as JSON.
    """
    from ovbridge.label_run import LabellingPlan, TeacherChoice
    from ovbridge.labeling.pseudo_boxes import SelectionConfig
    from ovbridge.labeling.sources import image_keys_in

    settings = _settings(batch, threads, shard, max_failed, retry_failed)
    keys = image_keys_in(images)
    names_of, usual_threshold = _known_names(images, annotations, names_from, rule)
    plan = LabellingPlan(
        teachers=TeacherChoice(proposer=proposer, clip=clip, trained_on=trained_on, device=device, precision=precision),
        regions=True,
        names_of=names_of,
        selection=SelectionConfig(top_k=top_k, paper_exact=paper_exact),
        crop_rule=crop_rule,
        threshold=usual_threshold if threshold is None else threshold,
        size_weight=size_weight,
    )
    _label(plan, store, images, keys, settings, _Where(engine, ray_address, teachers), json)


def text(
    *,
    store: Path,
    names: str | None = None,
    annotations: Path | None = None,
    clip: str = "builtin",
    template: tuple[str, ...] = ("a photo of a {}",),
    npy: Path | None = None,
    encoder: str | None = None,
    name: str = "default",
    device: str = "auto",
    json: bool = False,
) -> None:
    """Embed class names with CLIP, or take over embeddings that somebody published.

    Args:
        store: Label store to write to; made if need be.
        names: Class names, separated by commas.
        annotations: COCO JSON whose categories are the names, in order of id.
        clip: Text encoder: builtin, a weights file, MODEL/TAG or MODEL:FILE of open_clip, or a folder of open_clip's.
        template: Prompts with {} for the name, or a set of them: paper, simple-7, imagenet-80. Several are averaged.
        npy: Array [K, D] of embeddings in the order of the names, instead of an encoder.
        encoder: With --npy: the encoder that made it.
        name: What to call the bank.
        device: auto, cpu or cuda.
        json: Print the result as JSON.
    """
    from ovbridge.console import stdout
    from ovbridge.label_run import device_named
    from ovbridge.label_store import save_text_bank
    from ovbridge.labeling.sources import vocabulary_in
    from ovbridge.teachers.clip import load_clip
    from ovbridge.teachers.prompts import prompt_templates
    from ovbridge.vocabulary import TextBank

    if (names is None) == (annotations is None):
        raise ConfigError("give the class names either as --names a,b,c or as --annotations FILE")
    listed = [n.strip() for n in names.split(",") if n.strip()] if names is not None else []
    chosen = vocabulary_in(annotations).names if annotations is not None else tuple(dict.fromkeys(listed))
    if not chosen:
        raise ConfigError("--names needs at least one name")
    templates = prompt_templates(template)
    bank = (
        TextBank.from_npy(npy, chosen, encoder=encoder or npy.stem, template=templates[0])
        if npy is not None
        else load_clip(clip, device_named(device)).embed_names(chosen, templates)
    )
    file = save_text_bank(store, bank, name)
    if json:
        print(
            json_format.dumps({"file": str(file), "names": len(bank.names), "dim": bank.dim, "encoder": bank.encoder})
        )
    else:
        stdout.print(f"{len(bank.names)} names of {bank.dim} values by {bank.encoder} in {file}", soft_wrap=True)


def status(store: Path, /, *, json: bool = False) -> None:
    """Show what a label store holds, what failed and why, and how fast it fills.

    Args:
        store: The label store.
        json: Print as JSON; it also lists every failed image.
    """
    from ovbridge.console import stdout
    from ovbridge.label_store import LabelStore

    report = LabelStore.open(store).status()
    if json:
        print(json_format.dumps(report))
        return
    banks = report.pop("text")
    for table, figures in report.items():
        if "proposer" not in figures:
            continue
        of = f" of {figures['of']}" if figures["of"] else ""
        stdout.print(
            f"{table}: {figures['images'] + figures['failed']}{of} images, {figures['boxes']} boxes, "
            f"{figures['empty']} empty, {figures['failed']} failed, {figures['images_per_second']}/s; "
            f"by {figures['proposer']} (trained on: {figures['proposer_trained_on']})",
            soft_wrap=True,
        )
        for cause, count in figures["causes"].items():
            stdout.print(f"  {count} failed: {cause}", soft_wrap=True)
    for bank, figures in banks.items():
        said = figures.get("damaged") or f"{figures['names']} names of {figures['dim']} values by {figures['encoder']}"
        stdout.print(f"text {bank}: {said}", soft_wrap=True)


class _Where:
    """Which engine labels, and how wide."""

    def __init__(self, engine: EngineName, ray_address: str | None, teachers: int | None) -> None:
        if teachers is not None and teachers < 1:
            raise ConfigError("--teachers must be at least 1")
        if engine == "local" and (ray_address is not None or teachers is not None):
            raise ConfigError("--ray-address and --teachers go with --engine ray")
        self.engine, self.ray_address, self.teachers = engine, ray_address, teachers


def _label(
    plan: LabellingPlan,
    store: Path,
    images: Path,
    keys: Sequence[str],
    settings: RunSettings,
    where: _Where,
    json: bool,
) -> None:
    """Load the teachers, label, and report."""
    from ovbridge.images import read_image
    from ovbridge.labeling.run import Engine, label_images

    engine: Engine | None = None
    if where.engine == "ray":
        if plan.teachers.precision == "auto":
            raise ConfigError("--precision auto may mean something else on every machine: say fp32 or bf16 with Ray")
        from ovbridge.labeling.ray_engine import RayConfig, RayEngine, connect

        config = RayConfig(address=where.ray_address, teachers=where.teachers)
        connect(config)
        engine = RayEngine(
            make_labeller=plan.build,
            image_root=images.resolve(),
            read_image=read_image,
            settings=settings,
            config=config,
        )
    labeller = plan.build()
    plan.check_knows(labeller, keys, settings.max_failed)
    summary = label_images(store, images, keys, labeller, read_image=read_image, settings=settings, engine=engine)
    _report(summary, store, json)


def _known_names(
    images: Path, annotations: Path, names_from: Path | None, rule: Literal["words", "paper"]
) -> tuple[Mapping[str, Sequence[str]], float]:
    """The names known of each image, and the score that their boxes need by default."""
    from ovbridge.data.image_labels import load_tagged_images
    from ovbridge.labeling.sources import check_images_belong, default_threshold, names_by_image, vocabulary_in

    vocabulary = vocabulary_in(names_from) if names_from is not None else None
    tagged = load_tagged_images(annotations, vocabulary=vocabulary, rule=rule)
    check_images_belong(tagged.images, images, annotations)
    return names_by_image(tagged), default_threshold(tagged)


def _settings(batch: int, threads: int, shard: str, max_failed: float, retry_failed: bool) -> RunSettings:
    from ovbridge.labeling.run import RunSettings

    match = re.fullmatch(r"(\d+)/(\d+)", shard)
    if match is None or not int(match[1]) < int(match[2]):
        raise ConfigError(f"--shard {shard} is not i/n with i below n: for instance 0/4, 1/4, 2/4 and 3/4")
    if batch < 1 or threads < 1:
        raise ConfigError("--batch and --threads must be at least 1")
    return RunSettings(
        batch_images=batch,
        decode_threads=threads,
        shard=(int(match[1]), int(match[2])),
        max_failed=max_failed,
        retry_failed=retry_failed,
    )


def _report(summary: RunSummary, store: Path, json: bool) -> None:
    from ovbridge.console import stdout

    if json:
        figures = {"store": str(store), **asdict(summary), "failed": len(summary.failures)}
        print(json_format.dumps(figures))
        return
    for key, cause in summary.failures.items():
        stdout.print(f"failed: {key}: {cause}", soft_wrap=True)
    again = f" ({summary.replaced} anew, as their names have changed)" if summary.replaced else ""
    stdout.print(
        f"{summary.labelled} images labelled{again}, {summary.done_before} were done before, "
        f"{len(summary.failures)} of {summary.images} failed: {store}",
        soft_wrap=True,
    )
