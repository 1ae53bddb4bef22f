"""Planted leaks are found, each through the channel it came by; a clean split gives no alarm."""

import copy
import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from ovbridge.audit import leaks
from ovbridge.audit.findings import Finding, LeakReport
from ovbridge.audit.names import NovelNames
from ovbridge.audit.run import TrainingSources, audit, audit_sources, run_sources
from ovbridge.cli import doctor
from ovbridge.data.ovd_files import TRAIN_FILE, write_coco_ovd
from ovbridge.errors import ConfigError, DataError

TARGET = [
    {"id": 1, "name": "mug", "role": "base", "synonyms": ["mug"]},
    {"id": 2, "name": "bench", "role": "base"},
    {"id": 3, "name": "kite", "role": "novel"},
    {"id": 4, "name": "couch", "role": "novel"},
    {"id": 5, "name": "hot dog", "role": "unused"},
    {"id": 6, "name": "dog", "role": "novel"},
    {"id": 9, "name": "Airplane", "role": "novel"},
]
BOXES = {
    "images": [{"id": 1, "file_name": "1.jpg", "width": 50, "height": 50}],
    "annotations": [{"id": 7, "image_id": 1, "category_id": 1, "bbox": [1, 1, 9, 9], "phrase": "a blue mug"}],
    "categories": [c for c in TARGET if c["role"] == "base"],
}
LABELS = {
    "images": [{"id": 1, "file_name": "mug/1.jpg", "width": 5, "height": 5, "pos_category_ids": [1]}],
    "annotations": [{"id": 1, "image_id": 1, "caption": "A mug, a hot dog and a bench."}],
    "categories": [c for c in TARGET if c["role"] != "novel"],
}
CLEAN_TRAINING = "4131 images, roles ['base', 'unused']; images showing novel objects left out, their names never shown"


def _box(**extra):
    return {"id": 8, "image_id": 1, "category_id": 1, "bbox": [2, 2, 5, 5], **extra}


def _class(name):
    def plant(s):
        s["boxes"]["categories"] = [*s["boxes"]["categories"], {"id": 99, "name": name}]
        s["boxes"]["annotations"].append(_box(category_id=99))

    return plant


def _novel_box(**extra):
    def plant(s):
        s["boxes"]["categories"] = TARGET
        s["boxes"]["annotations"].append(_box(category_id=3, **extra))

    return plant


def _synonym(s):
    s["boxes"]["categories"][0]["synonyms"] = ["mug", "Kite"]


def _box_tag(s):
    s["boxes"]["categories"] = TARGET
    s["boxes"]["images"][0]["pos_category_ids"] = [1, 3]


def _phrase(s):
    s["boxes"]["annotations"].append(_box(phrase="two red kites"))


def _image(**extra):
    def plant(s):
        s["boxes"]["images"][0] |= extra

    return plant


def _tag(name, **extra):
    def plant(s):
        s["labels"]["categories"] = [*s["labels"]["categories"], {"id": 50, "name": name}]
        s["labels"]["images"].append(
            {"id": 2, "file_name": "x.jpg", "width": 5, "height": 5, "pos_category_ids": [50]} | extra
        )

    return plant


def _caption(text):
    def plant(s):
        s["labels"]["annotations"].append({"id": 2, "image_id": 1, "caption": text})

    return plant


def _label_image(**extra):
    def plant(s):
        s["labels"]["images"].append({"id": 2, "width": 5, "height": 5, "pos_category_ids": [], **extra})

    return plant


def _folder(name):
    def plant(s):
        (s["folder"] / name).mkdir()

    return plant


def _set(**values):
    return lambda s: s.update(values)


PLANTED = {
    "box of a novel class": (_novel_box(), "boxes"),
    "crowd of a novel class": (_novel_box(iscrowd=1), "boxes"),
    "boxes of a synonym": (_class("sofa"), "class names"),
    "boxes of a plural": (_class("kites"), "class names"),
    "boxes of a compound": (_class("box kite"), "class names"),
    "boxes in capitals": (_class("KITE"), "class names"),
    "boxes with an underscore": (_class("stunt_kite"), "class names"),
    "novel name among a class's synonyms": (_synonym, "synonyms"),
    "tag beside the boxes": (_box_tag, "tags"),
    "boxes of a synonym, target in capitals": (_class("aeroplane"), "class names"),
    "boxes in full-width letters": (_class("ＫＩＴＥ"), "class names"),
    "phrase of a box": (_phrase, "annotation text"),
    "captions beside the boxes": (_image(captions=["nothing", "a kite up high"]), "annotation text"),
    "tags beside the boxes": (_image(tags=["couch"]), "annotation text"),
    "boxed images in a novel folder": (_image(file_name="kites/1.jpg"), "image folders"),
    "tag": (_tag("kite"), "tags"),
    "tag by a synonym": (_tag("sofa"), "tags"),
    "tag in the plural": (_tag("dogs"), "tags"),
    "caption with punctuation": (_caption("Look: a dog."), "captions"),
    "caption in the plural": (_caption("Kites over the sea"), "captions"),
    "caption by a synonym": (_caption("she sits on a lounge"), "captions"),
    "caption beside a tag": (_label_image(file_name="2.jpg", captions=["a couch"]), "captions"),
    "labelled images in a novel folder": (_label_image(file_name="couch/2.jpg"), "image folders"),
    "empty folder of a novel class": (_folder("kite"), "image folders"),
    "pseudo boxes": (_set(tags={"mug": 4, "dog": 2}), "pseudo boxes"),
    "query": (_set(queries=["all objects", "every kite"]), "queries"),
    "proposer trained on novel roles": (_set(trained_on="9 images, roles ['base', 'novel']"), "proposer"),
    "proposer trained on a novel name": (_set(trained_on="our own boxes of mugs and kites"), "proposer"),
    "proposer trained on open data": (_set(trained_on="LMDet (Flickr30k, COCO, VG)"), "proposer"),
    "proposer that does not say": (_set(trained_on=""), "proposer"),
    "classifier columns under image labels": (_set(columns=["mug", "kite"]), "vocabulary"),
    "text bank": (_set(banks={"default": ("mug", "couch")}), "text bank"),
}


def _findings(s, tmp_path):
    novel = NovelNames(TARGET, "target")
    return [
        *leaks.box_findings(s["boxes"], novel, "boxes.json"),
        *leaks.label_findings(s["labels"], novel, "labels.json"),
        *leaks.folder_findings(s["folder"], novel),
        *leaks.store_findings(s["tags"], s["queries"], s["banks"], novel, "store"),
        *leaks.proposer_findings("mavl", s["trained_on"], novel, "store"),
        *leaks.vocabulary_findings(s["columns"], novel, "classifier"),
    ]


@pytest.fixture
def sources(tmp_path):
    folder = tmp_path / "image_labels"
    (folder / "hot_dog").mkdir(parents=True)
    return {
        "boxes": copy.deepcopy(BOXES),
        "labels": copy.deepcopy(LABELS),
        "folder": folder,
        "tags": {"mug": 3},
        "queries": ["all objects", "all entities"],
        "banks": {},
        "trained_on": CLEAN_TRAINING,
        "columns": ["mug", "bench"],
    }


def test_a_clean_split_gives_no_alarm(sources, tmp_path):
    assert _findings(sources, tmp_path) == []


@pytest.mark.parametrize("leak", PLANTED)
def test_a_planted_leak_is_found(leak, sources, tmp_path):
    plant, channel = PLANTED[leak]
    plant(sources)
    found = _findings(sources, tmp_path)
    assert [f.channel for f in found] == [channel]
    assert found[0].count == 1


def test_real_coco_split_is_clean_and_its_source_is_not(shared_data, tmp_path):
    annotations = shared_data / "tiny_coco" / "annotations"
    write_coco_ovd(annotations, tmp_path / "ovd")
    target = annotations / "instances_train2017.json"
    clean = audit_sources(TrainingSources(boxes=tmp_path / "ovd" / TRAIN_FILE), target=target)
    assert (clean.verdict, clean.findings, clean.novel_classes) == ("clean", (), 17)
    leaky = audit_sources(TrainingSources(boxes=target), target=target)
    assert leaky.verdict == "leak"
    assert leaky.findings[0].channel == "boxes"
    captions = audit_sources(TrainingSources(labels=(annotations / "captions_train2017.json",)), target=target)
    assert captions.verdict == "known vocabulary"


def test_every_lvis_base_class_may_be_boxed(shared_data):
    categories = json.loads((shared_data / "metadata" / "lvis_v1_train_cat_info.json").read_text())
    base = [c for c in categories if c["frequency"] != "r"]
    payload = {
        "images": [],
        "categories": categories,
        "annotations": [{"id": c["id"], "image_id": 1, "category_id": c["id"], "bbox": [0, 0, 1, 1]} for c in base],
    }
    assert list(leaks.box_findings(payload, NovelNames(categories, "lvis"), "lvis")) == []


def _finding(severity):
    return Finding(channel="tags", severity=severity, names=("kite",), count=1, where="x", example="y")


def test_known_vocabulary_is_stated_and_strict_makes_it_a_leak():
    known = LeakReport(novel_classes=1, looked_at=(), findings=(_finding("known vocabulary"),))
    assert known.verdict == "known vocabulary"
    assert (len(known.to_json()["leaks"]), len(known.to_json()["stated"])) == (0, 1)
    strict = LeakReport(novel_classes=1, looked_at=(), findings=known.findings, strict=True)
    assert strict.verdict == "leak"
    assert LeakReport(novel_classes=1, looked_at=(), findings=(_finding("leak"),)).verdict == "leak"
    backbone = replace(_finding("known vocabulary"), channel="backbone")
    stated = LeakReport(novel_classes=1, looked_at=(), findings=(backbone,), strict=True)
    assert stated.verdict == "known vocabulary", "what a backbone was pretrained on is stated, strict or not"
    assert LeakReport(novel_classes=1, looked_at=()).verdict == "clean"


@pytest.fixture
def world(tmp_path):
    """A data set folder as `ovbridge world` and `prepare coco-ovd` lay it out, and a run that trained on it."""
    annotations = tmp_path / "world" / "annotations"
    annotations.mkdir(parents=True)
    for name, content in (
        ("instances_train2017_base.json", {**BOXES, "categories": TARGET}),
        ("instances_val2017.json", {**BOXES, "categories": TARGET}),
        ("image_labels.json", {**LABELS, "annotations": [], "categories": TARGET}),
    ):
        (annotations / name).write_text(json.dumps(content))
    data = {
        "root": str(tmp_path / "world"),
        "annotations": "annotations/instances_train2017_base.json",
        "label_annotations": "annotations/image_labels.json",
        "store": "",
    }
    for stage, labelled, init in (("base", False, ""), ("pis", True, str(tmp_path / "base" / "detector.safetensors"))):
        run = tmp_path / stage
        run.mkdir()
        record = {"config": {"data": data, "stage": {"image_labels": labelled}, "init": init}}
        record["inputs"] = {"vocabulary": TARGET}
        (run / "config.json").write_text(json.dumps(record))
    return tmp_path


def test_runs_are_audited_with_what_they_started_from(world):
    assert audit(world / "base").verdict == "clean"
    pis = audit(world / "pis")
    assert pis.verdict == "known vocabulary"
    assert [f.channel for f in pis.findings] == ["vocabulary"]
    assert audit(world / "world").verdict == "clean"
    assert audit(world / "base", strict=True).verdict == "leak", "novel names are columns of the classifier"
    boxes = world / "world" / "annotations" / "instances_train2017_base.json"
    boxes.write_text(json.dumps({**BOXES, "categories": TARGET, "annotations": [_box(category_id=3)]}))
    assert audit(world / "pis").verdict == "leak", "through the base stage that it started from"


@pytest.mark.parametrize(
    ("said", "verdict"),
    [
        ("labels of 9 single objects of teachers/train2017, without novel objects", "clean"),
        ("labels of 9 single objects of teachers/train2017, all names, novel names included", "known vocabulary"),
    ],
)
def test_what_a_backbone_was_pretrained_on_is_stated(world, said, verdict):
    weights = world / "backbone.safetensors"
    save_file({"backbone.x": torch.zeros(1)}, weights, metadata={"trained_on": said})
    record = json.loads((world / "base" / "config.json").read_text())
    record["config"]["init"] = str(weights)
    (world / "base" / "config.json").write_text(json.dumps(record))
    report = audit(world / "base")
    assert report.verdict == verdict
    assert [f.channel for f in report.findings] == ([] if verdict == "clean" else ["backbone"])
    later = {f.channel for f in audit(world / "pis").findings}
    assert ("backbone" in later) == (verdict != "clean"), "a later stage inherits what its start declares"


def test_what_cannot_be_audited_is_said(world, tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match="nothing to audit"):
        audit(tmp_path / "empty")
    (tmp_path / "empty" / "instances_val2017.json").write_text(json.dumps({"categories": TARGET}))
    with pytest.raises(ConfigError, match="nothing to audit"):
        audit(tmp_path / "empty")
    with pytest.raises(DataError, match="no class is novel"):
        NovelNames([{"id": 1, "name": "mug"}], "x.json")
    with pytest.raises(DataError, match=r"x\.json: category 1 \(mug\) has role 'rare'"):
        NovelNames([{"id": 1, "name": "mug", "role": "rare"}], "x.json")


def test_doctor_leaks_prints_and_stores_the_verdict(world, capsys):
    results = world / "results.json"
    results.write_text(json.dumps({"protocol": "ov-coco", "ap50": {}}))
    doctor.run(["leaks", str(world / "pis"), "--results", str(results), "--json"])
    record = json.loads(capsys.readouterr().out)
    assert record["verdict"] == "known vocabulary"
    assert json.loads(results.read_text())["leaks"] == record
    with pytest.raises(SystemExit) as stop:
        doctor.run(["leaks", str(world / "pis"), "--strict"])
    assert stop.value.code == 1
    assert "verdict: leak, 4 novel classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    "config",
    [
        {"steps": 10},
        {"data": 5},
        {"data": None},
        {"data": {"annotations": 5}},
        {"data": {"annotations": "x.json"}, "init": 5},
    ],
)
def test_a_run_that_does_not_say_its_boxes_is_never_clean(config, tmp_path):
    record = tmp_path / "config.json"
    record.write_text(json.dumps({"config": config}))
    with pytest.raises(ConfigError, match=r"config\.json .*cannot be audited"):
        run_sources(record)


@pytest.mark.parametrize("first", [{"caption": "a kite"}, {"segmentation": [[1, 1, 9, 1, 9, 9]]}])
def test_a_file_with_boxes_is_never_taken_for_labels(first, world):
    boxes = world / "world" / "annotations" / "instances_train2017_base.json"
    boxes.write_text(
        json.dumps({**BOXES, "categories": TARGET, "annotations": [{"id": 1, "image_id": 1} | first, _box()]})
    )
    with pytest.raises(DataError, match="annotation 1 has"):
        audit(boxes)


@pytest.mark.parametrize("category", [5, {"name": "kite"}, {"id": "a", "name": "kite"}])
def test_a_broken_target_is_named(category, world, tmp_path):
    (tmp_path / "target.json").write_text(json.dumps({"categories": [category]}))
    with pytest.raises(DataError, match=r"target\.json: category number 0"):
        audit(world / "base", target=tmp_path / "target.json")
