"""`prepare`, `evaluate --predictions` and `doctor` as a user calls them: output, JSON, exit codes."""

import json

import pytest
import torch
from PIL import Image

from ovbridge.cli import doctor, main
from ovbridge.detector.architectures import world_r18_fpn
from ovbridge.detector.build import build_detector
from ovbridge.detector.checkpoint_file import DetectorMetadata, save_detector
from ovbridge.errors import ConfigError, OVBridgeError

TRUTH = {
    "images": [{"id": 4, "file_name": "a.jpg", "width": 40, "height": 30}],
    "categories": [{"id": 3, "name": "mug", "role": "base"}, {"id": 9, "name": "kite", "role": "novel"}],
    "annotations": [
        {"id": 1, "image_id": 4, "category_id": 3, "bbox": [1, 2, 10, 20]},
        {"id": 2, "image_id": 4, "category_id": 9, "bbox": [5, 5, 10, 10]},
    ],
}


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "coco"
    (folder / "annotations").mkdir(parents=True)
    (folder / "train2017").mkdir()
    Image.new("RGB", (40, 30)).save(folder / "train2017" / "a.jpg")
    (folder / "annotations" / "instances_train2017.json").write_text(json.dumps(TRUTH))
    return folder


def _json_of(capsys, *words):
    assert main.run([*map(str, words), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def _error_of(capsys, *words):
    assert main.run(list(map(str, words))) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.count("\n") == 1
    return captured.err


def test_prepare_coco_ovd(data, tmp_path, capsys):
    counts = _json_of(capsys, "prepare", "coco-ovd", "--annotations", data / "annotations", "--out", tmp_path / "ovd")
    assert counts["train"]["images"] == 1
    assert counts["train"]["annotations"] == 1
    words = ["prepare", "coco-ovd", "--annotations", str(data / "annotations"), "--out", str(tmp_path / "again")]
    assert main.run(words) == 0
    assert "train: 1 images with 1 boxes" in capsys.readouterr().out
    assert "does not exist" in _error_of(
        capsys, "prepare", "coco-ovd", "--annotations", tmp_path, "--out", tmp_path / "x"
    )
    assert "imagenet-lvis" in _error_of(capsys, "prepare", "imagenet")


def test_prepare_captions_needs_both_lvis_files(data, tmp_path, capsys):
    error = _error_of(
        capsys, "prepare", "coco-captions", "--annotations", data, "--out", tmp_path, "--lvis-cat-info", "x.json"
    )
    assert "--coco-to-synset belong together" in error


def test_evaluate_predictions(data, tmp_path, capsys):
    truth = data / "annotations" / "instances_train2017.json"
    found = tmp_path / "found.json"
    found.write_text(json.dumps([{"image_id": 4, "category_id": 9, "bbox": [5, 5, 10, 10], "score": 0.4}]))
    words = ["evaluate", "--predictions", found, "--annotations", truth, "--protocol", "ov-coco"]
    record = _json_of(capsys, *words, "--out", tmp_path / "results.json")
    assert record["ap50"] == pytest.approx({"base": 0.0, "novel": 100.0, "all": 50.0})
    assert {"protocol", "dataset", "ap", "per_class", "images", "checkpoint", "stage", "seed", "seconds"} <= set(record)
    assert json.loads((tmp_path / "results.json").read_text()) == record
    assert main.run(list(map(str, words))) == 0
    assert "100.0" in capsys.readouterr().out
    other = [*words[:-1], "coco", "--out", tmp_path / "results.json"]
    assert "exists and holds something else" in _error_of(capsys, *other)


def test_evaluate_needs_one_source_of_detections(data, capsys):
    truth = data / "annotations" / "instances_train2017.json"
    assert "either --predictions" in _error_of(capsys, "evaluate", "--annotations", truth)
    assert "needs --images" in _error_of(capsys, "evaluate", "--annotations", truth, "--checkpoint", "x.safetensors")
    assert "protocol" in _error_of(capsys, "evaluate", "--annotations", truth, "--protocol", "voc")


def _checkpoint(path, names):
    """An untrained detector with a text embedding a name, the same one wherever the name stands."""
    rows = {"mug": [1.0, 0.0, 0.0, 0.2], "kite": [-1.0, 0.1, 0.0, -0.2]}  # opposite: one scores high
    model = build_detector(world_r18_fpn(embedding_dim=4), torch.tensor([rows[name] for name in names]))
    vocabulary = tuple({"name": n, "role": "base", "category_id": k + 1} for k, n in enumerate(names))
    metadata = DetectorMetadata(
        stage="base", vocabulary=vocabulary, text_encoder="none", extra={"seed": 5, "test_size": [60, 80]}
    )
    save_detector(path, model, metadata)
    return path


def test_evaluate_checkpoint_matches_classes_by_name(data, tmp_path, capsys):
    truth = data / "annotations" / "instances_train2017.json"
    found = {}
    for names in (("mug", "kite"), ("kite", "mug")):
        checkpoint = _checkpoint(tmp_path / f"{names[0]}.safetensors", names)
        words = ["evaluate", "--checkpoint", checkpoint, "--images", data / "train2017", "--annotations", truth]
        detections = tmp_path / f"{names[0]}.json"
        record = _json_of(capsys, *words, "--device", "cpu", "--save-predictions", detections)
        assert (record["stage"], record["seed"], record["checkpoint"]) == ("base", 5, str(checkpoint))
        found[names[0]] = sorted(json.loads(detections.read_text()), key=lambda d: (-d["score"], d["category_id"]))
    assert found["mug"], "an untrained detector should still score some boxes above 0.05"
    assert {d["category_id"] for d in found["mug"]} <= {3, 9}
    for left, right in zip(found["mug"], found["kite"], strict=True):
        assert left["category_id"] == right["category_id"]
        assert left["score"] == pytest.approx(right["score"], abs=1e-5)


def test_evaluate_names_a_missing_image_and_writes_nothing(data, tmp_path, capsys):
    (data / "train2017" / "a.jpg").unlink()
    checkpoint = _checkpoint(tmp_path / "mug.safetensors", ("mug", "kite"))
    truth = data / "annotations" / "instances_train2017.json"
    out = tmp_path / "results.json"
    words = ["evaluate", "--checkpoint", checkpoint, "--images", data / "train2017", "--annotations", truth]
    assert "a.jpg does not exist" in _error_of(capsys, *words, "--device", "cpu", "--out", out)
    assert not out.exists()


def _doctor(capsys, *words):
    """(exit code, what was found) of a doctor call."""
    try:
        doctor.run([*map(str, words), "--json"])
        code = 0
    except SystemExit as stop:
        code = stop.code
    return code, json.loads(capsys.readouterr().out)


def test_doctor_recognises_what_it_is_given(data, tmp_path, capsys):
    assert _doctor(capsys)[1]["kind"] == "machine"
    code, found = _doctor(capsys, data)
    assert (code, found["kind"], found["ok"]) == (0, "data set", True)
    assert _doctor(capsys, data / "train2017")[1]["facts"] == {"images": 1, "wide": 1}
    annotations = data / "annotations" / "instances_train2017.json"
    assert _doctor(capsys, annotations)[1]["facts"]["boxes"] == {"base": 1, "novel": 1}
    (tmp_path / "weights.safetensors").write_bytes(b"none")
    code, found = _doctor(capsys, tmp_path / "weights.safetensors")
    assert (code, found["kind"], len(found["faults"])) == (1, "checkpoint", 1)
    with pytest.raises(ConfigError, match="does not exist"):
        doctor.run([str(tmp_path / "absent")])
    (tmp_path / "empty").mkdir()
    with pytest.raises(OVBridgeError, match="nothing to check"):
        doctor.run([str(tmp_path / "empty")])


def test_doctor_names_every_fault_and_exits_with_one(data, capsys):
    broken = json.loads(json.dumps(TRUTH))
    broken["annotations"][0]["category_id"] = 77
    broken["annotations"][1]["bbox"] = [5, 5, -1, 10]
    (data / "annotations" / "instances_train2017.json").write_text(json.dumps(broken))
    code, found = _doctor(capsys, data)
    assert code == 1
    assert len(found["faults"]) == 2
    assert "annotation 1 has category 77" in found["faults"][0]
    assert "annotation 2 has bbox [5, 5, -1, 10]" in found["faults"][1]
