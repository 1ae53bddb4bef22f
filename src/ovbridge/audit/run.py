"""What training read, found from a folder, a file or a checkpoint; then every check over it.

A training run knows what it read (`config.json`), and what the run read that it started from. A data set folder is
taken as it would be trained on: boxes of its base file (or its only training file), all image-level labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ovbridge.audit import leaks
from ovbridge.audit.findings import Finding, LeakReport, merged
from ovbridge.audit.names import NovelNames
from ovbridge.data.annotation_check import check_annotations, read_json
from ovbridge.data.image_labels import read_categories
from ovbridge.data.label_check import check_naming
from ovbridge.errors import ConfigError, DataError, OVBridgeError

RUN_RECORD, CHECKPOINT = "config.json", "detector.safetensors"
BASE_FILES = ("instances_train*_base.json", "instances_train_strict.json", "*train*_norare.json")
ANY_TRAIN_FILES = ("instances_train*.json", "*train*.json")
LABEL_FILES = ("image_labels*.json", "captions_train*.json", "imagenet_*.json")
TARGET_FILES = ("instances_val*_ovd.json", "instances_val*.json", "*val*.json", "instances_train*.json")


@dataclass(frozen=True, kw_only=True)
class TrainingSources:
    """Everything that one training read."""

    boxes: Path | None = None
    """Annotation file of the images with boxes."""
    labels: tuple[Path, ...] = ()
    """Files with image-level labels or captions."""
    label_folder: Path | None = None
    """Folder of the images with labels, whose subfolders may be class names."""
    store: Path | None = None
    """Label store."""
    store_tags: bool = True
    """Whether its PIS boxes were trained on, not only its regions."""
    columns: tuple[str, ...] = ()
    """Names in the classifier of training, where image labels train all of them."""
    target: Path | None = None
    """Annotation file that tells which classes are novel."""
    vocabulary: tuple[tuple[str, str], ...] = ()
    """(name, role) of the classes of training, where no annotation file is at hand."""
    declared: tuple[tuple[str, str], ...] = ()
    """(proposer, what it was trained on) where no store can be asked."""
    backbone: str = ""
    """What the backbone was pretrained on, as its file declares."""
    notes: tuple[str, ...] = ()

    def paths(self) -> list[str]:
        """What will be read, one line each."""
        named = {"boxes": self.boxes, "images with labels": self.label_folder, "label store": self.store}
        lines = [f"{name}: {path}" for name, path in named.items() if path is not None]
        return lines + [f"labels: {path}" for path in self.labels]


def audit(path: Path, *, target: Path | None = None, strict: bool = False) -> LeakReport:
    """Audit a run, a checkpoint, a data set folder, a label store or an annotation file.

    Args:
        path: What to audit.
        target: Annotation file whose categories say which classes are novel, where `path` does not tell.
        strict: The target names had to be unknown: everything found is a leak.

    Raises:
        OVBridgeError: There is nothing to audit in `path`, or no class is novel.
    """
    return merged([audit_sources(s, target=target, strict=strict) for s in sources_of(path)])


def audit_sources(sources: TrainingSources, *, target: Path | None = None, strict: bool = False) -> LeakReport:
    """Every check over what one training read."""
    novel = _novel(sources, target)
    return LeakReport(
        novel_classes=len(novel.names),
        looked_at=tuple(sources.paths()),
        findings=tuple(_findings(sources, novel, strict=strict)),
        strict=strict,
        notes=sources.notes,
    )


def _findings(sources: TrainingSources, novel: NovelNames, *, strict: bool) -> Iterator[Finding]:
    if sources.boxes is not None:
        payload = _payload(sources.boxes, boxes=True)
        yield from leaks.box_findings(payload, novel, sources.boxes)
        if strict:
            columns = [str(c["name"]) for c in payload["categories"]]
            yield from leaks.vocabulary_findings(columns, novel, sources.boxes)
    # Strict: every column counts, trained by image labels or not; the box file above has them where there is one.
    if not strict or sources.boxes is None:
        known = tuple(name for name, _ in sources.vocabulary)
        columns = list(known if strict and not sources.columns else sources.columns)
        yield from leaks.vocabulary_findings(columns, novel, "the classifier of training")
    for path in sources.labels:
        yield from leaks.label_findings(_payload(path, boxes=False), novel, path)
    if sources.label_folder is not None:
        yield from leaks.folder_findings(sources.label_folder, novel)
    if sources.store is not None:
        yield from _store(sources.store, novel, tags=sources.store_tags, strict=strict)
    for name, trained_on in sources.declared:
        yield from leaks.proposer_findings(name, trained_on, novel, "the checkpoint")
    yield from leaks.backbone_findings(sources.backbone, novel, "the backbone that training starts from")


def _store(path: Path, novel: NovelNames, *, tags: bool, strict: bool) -> Iterator[Finding]:
    from ovbridge.label_store import LabelStore  # here: Lance takes a second to import

    store = LabelStore.open(path)
    manifests = [store.manifest(table) for table in ("regions", "tags") if table in store]
    queries = list(dict.fromkeys(q for m in manifests for q in m.queries if "{}" not in q))
    banks = store.text_names() if strict else {}
    counts = store.tag_counts() if tags or strict else {}
    yield from leaks.store_findings(counts, queries, banks, novel, path)
    for name, trained_on in dict.fromkeys((m.proposer, m.proposer_trained_on) for m in manifests):
        yield from leaks.proposer_findings(name, trained_on, novel, path)


def _payload(path: Path, *, boxes: bool) -> dict[str, Any]:
    payload = read_json(path)
    check_annotations(payload, str(path), boxes=boxes, federated=None)
    check_naming(payload, str(path))
    return dict(payload)


def _novel(sources: TrainingSources, target: Path | None) -> NovelNames:
    chosen = target or sources.target or sources.boxes
    if chosen is None and sources.vocabulary:
        records = [{"id": k, "name": n, "role": r} for k, (n, r) in enumerate(sources.vocabulary)]
        return NovelNames(records, "the checkpoint")
    if chosen is None:
        raise DataError("which classes are novel? give --target with an annotation file that holds them")
    categories = read_categories(chosen)
    if not categories:
        raise DataError(f"{chosen} has no categories: give --target with an annotation file that holds the novel ones")
    return NovelNames(categories, str(chosen))


def sources_of(path: Path) -> list[TrainingSources]:
    """What was (or would be) trained on, one record a training; raises ConfigError where there is nothing."""
    if not path.exists():
        raise ConfigError(f"{path} does not exist: give a run, a checkpoint, a data set, a store or an annotation file")
    if path.is_file():
        if path.suffix == ".safetensors":
            return checkpoint_sources(path)
        return [_one_file(path)]
    runs = sorted(path.glob("**/" + RUN_RECORD))
    found = [s for run in runs for s in run_sources(run)]
    if found:
        return list(dict.fromkeys(found))
    if any(path.glob("*.lance")) or (path / "text").is_dir():
        return [TrainingSources(store=path)]
    folder = path / "annotations" if (path / "annotations").is_dir() else path
    if any(folder.glob("*.json")):
        found = [_data_set(path, folder)]
        if found[0].paths():
            return found
    raise ConfigError(f"{path} is no run, data set, store or annotation file: there is nothing to audit in it")


def run_sources(record: Path) -> list[TrainingSources]:
    """What the run of a `config.json` read, and the runs that it started from, first to last."""
    content = read_json(record)
    if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
        return []
    try:
        return _chain(content, record)
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{record} is not as 'ovbridge train' writes it ({error}): it cannot be audited") from None


def _chain(content: dict[str, Any], record: Path) -> list[TrainingSources]:
    config = content["config"]
    data, stage = config.get("data") or {}, config.get("stage") or {}
    if not data.get("annotations"):
        raise ConfigError(f"{record} does not say which boxes its run was trained on: it cannot be audited")
    root = Path(data.get("root") or ".")
    labelled, distilled = bool(stage.get("image_labels")), bool(stage.get("region_distillation"))
    columns = tuple(str(c["name"]) for c in content.get("inputs", {}).get("vocabulary", ()))
    boxes = root / data["annotations"]
    before = Path(config.get("init") or "")
    earlier = run_sources(before.parent / RUN_RECORD) if before.name and (before.parent / RUN_RECORD).is_file() else []
    own = TrainingSources(
        boxes=boxes,
        labels=(root / data["label_annotations"],) if labelled and data.get("label_annotations") else (),
        label_folder=root / data["label_images"] if labelled and data.get("label_images") else None,
        store=root / data["store"] if (labelled or distilled) and data.get("store") else None,
        store_tags=labelled,
        columns=columns if labelled else (),
        target=_target_near(boxes),
        backbone=_pretraining(before) if before.name and not earlier else "",
    )
    return [*earlier, own]


def checkpoint_sources(path: Path) -> list[TrainingSources]:
    """By the run beside a checkpoint, else by what the checkpoint says of itself."""
    beside = run_sources(path.parent / RUN_RECORD) if (path.parent / RUN_RECORD).is_file() else []
    if beside:
        return beside
    from ovbridge.detector.checkpoint_file import read_metadata

    _, metadata = read_metadata(path)
    teachers = metadata.extra.get("teachers", {})
    declared = tuple(dict.fromkeys((t["proposer"], t["proposer_trained_on"]) for t in teachers.values()))
    note = f"{path} lies beside no run record: only what it says of its teachers was looked at"
    columns = metadata.names if "pis" in metadata.stage else ()
    vocabulary = tuple((str(c["name"]), str(c["role"])) for c in metadata.vocabulary)
    return [
        TrainingSources(
            columns=columns,
            vocabulary=vocabulary,
            declared=declared,
            backbone=str(metadata.extra.get("backbone_trained_on", "")),
            notes=(note,),
        )
    ]


def _pretraining(weights: Path) -> str:
    from ovbridge.detector.checkpoint_file import backbone_trained_on

    return backbone_trained_on(weights)


def summary_for(checkpoint: str, target: Path, *, strict: bool = False) -> dict[str, Any]:
    """The verdict that results carry: of the checkpoint's training, against the classes it is evaluated on."""
    path = Path(checkpoint)
    if path.is_dir():
        path = path / CHECKPOINT
    try:
        report = audit(path, target=target, strict=strict)
    except OVBridgeError as error:
        return {"verdict": "not audited", "why": str(error)}
    record = report.to_json()
    return {key: record[key] for key in ("verdict", "strict", "leaks", "stated", "notes")}


def _one_file(path: Path) -> TrainingSources:
    payload = read_json(path)
    annotations = payload.get("annotations") if isinstance(payload, dict) else None
    records = annotations if isinstance(annotations, list) else ()
    if any(isinstance(a, dict) and not {"bbox", "segmentation"}.isdisjoint(a) for a in records):
        return TrainingSources(boxes=path, target=_target_near(path))
    return TrainingSources(labels=(path,), target=_target_near(path))


def _data_set(root: Path, folder: Path) -> TrainingSources:
    boxes = _first(folder, BASE_FILES) or _first(folder, ANY_TRAIN_FILES)
    labels = tuple(p for pattern in LABEL_FILES for p in sorted(folder.glob(pattern)))
    label_folder = root / "image_labels"
    stores = [p for p in (root / "labels", root / "store") if any(p.glob("*.lance")) or (p / "text").is_dir()]
    return TrainingSources(
        boxes=boxes,
        labels=tuple(p for p in labels if p != boxes),
        label_folder=label_folder if label_folder.is_dir() else None,
        store=stores[0] if stores else None,
        target=_first(folder, TARGET_FILES),
    )


def _target_near(path: Path) -> Path | None:
    """The annotation file in the same folder that tells the novel classes: evaluation files first."""
    return _first(path.parent, TARGET_FILES)


def _first(folder: Path, patterns: Sequence[str]) -> Path | None:
    return next((p for pattern in patterns for p in sorted(folder.glob(pattern))), None)


def with_extra(
    sources: Sequence[TrainingSources], *, labels: Sequence[Path] = (), store: Path | None = None
) -> list[TrainingSources]:
    """The same with label files and a store that the caller names, added to the last."""
    last = sources[-1]
    return [*sources[:-1], replace(last, labels=(*last.labels, *labels), store=store or last.store)]
