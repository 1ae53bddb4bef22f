from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import nn

from ovbridge.cli.export import run
from ovbridge.detector import DetectorMetadata, TwoStageDetector, build_detector, save_detector, world_r18_fpn
from ovbridge.errors import CheckpointError, ConfigError, DataError
from ovbridge.export import network
from ovbridge.export.detector_graph import detector_graph
from ovbridge.export.graph import Graph
from ovbridge.export.onnx_file import export_onnx

ROOT = Path(__file__).parents[3]
METADATA = DetectorMetadata(
    stage="base",
    vocabulary=({"name": "mug", "role": "base"}, {"name": "kite", "role": "novel"}),
    text_encoder="builtin",
    extra={"test_size": [64, 96]},
)


@pytest.fixture(scope="module")
def model() -> TwoStageDetector:
    bank = torch.randn(2, 32, generator=torch.Generator().manual_seed(0))
    model = build_detector(world_r18_fpn(embedding_dim=32, channels=(8, 8, 8, 8)), bank, seed=2).eval()
    model.rpn.objectness.weight.data *= 300
    return model


@pytest.fixture(scope="module")
def checkpoint(model: TwoStageDetector, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "detector.safetensors"
    save_detector(path, model, METADATA)
    return path


def _scores(path: Path, pixels: np.ndarray, **more: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    inputs = {"images": pixels[None], "image_sizes": np.array([pixels.shape[:2]]), "score_threshold": np.float32([0])}
    return session.run(None, inputs | more)[1]


def test_one_file_says_what_it_is(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "model.onnx"
    run(["--checkpoint", str(checkpoint), "--out", str(out), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert printed["bytes"] == out.stat().st_size
    assert sorted(path.name for path in out.parent.iterdir()) == ["model.onnx"]
    proto = onnx.load(str(out))
    onnx.checker.check_model(proto, full_check=True)
    about = {entry.key: entry.value for entry in proto.metadata_props}
    assert json.loads(about["names"]) == ["mug", "kite"]
    assert about["embedding_width"] == "32"
    assert about["text_encoder"] == "builtin"
    assert json.loads(about["preprocessing"])["short_side"] == 64
    free = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in proto.graph.input
    }
    assert free["images"] == ["batch", "height", "width", 3]
    assert free["vocabulary"] == ["names", 32]


def test_precisions_shrink_the_file_and_keep_the_scores_near(model: TwoStageDetector, tmp_path: Path) -> None:
    pictures = list(np.random.default_rng(0).integers(0, 255, (3, 64, 96, 3), dtype=np.uint8))
    exact = export_onnx(model, METADATA, tmp_path / "fp32.onnx")
    half = export_onnx(model, METADATA, tmp_path / "fp16.onnx", precision="fp16")
    small = export_onnx(model, METADATA, tmp_path / "int8.onnx", precision="int8", calibration=pictures)
    assert half.bytes < 0.6 * exact.bytes
    assert small.bytes < 0.5 * exact.bytes
    wanted = _scores(exact.path, pictures[0])[:20]
    assert len(_scores(exact.path, pictures[0], vocabulary=np.zeros((0, 32), np.float32))) == 0
    for file, tolerance in ((half, 0.02), (small, 0.1)):
        assert float(np.abs(_scores(file.path, pictures[0])[:20] - wanted).max()) < tolerance
        assert {e.key: e.value for e in onnx.load(str(file.path)).metadata_props}["precision"] == file.precision


def test_int8_keeps_what_is_read_off_in_fp32(model: TwoStageDetector) -> None:
    from ovbridge.export.int8 import _is_read_off

    proto = detector_graph(model, METADATA)
    kept = [n.name for n in proto.graph.node if n.op_type in ("Conv", "Gemm") and _is_read_off(proto, n.name)]
    # Objectness and deltas on three levels, the last layer of the box regression, the projection.
    assert len(kept) == 3 * 2 + 2


def test_mistakes_are_one_line(model: TwoStageDetector, checkpoint: Path, tmp_path: Path) -> None:
    foreign = tmp_path / "thesis.txt"
    foreign.write_text("mine")
    for arguments, error, message in (
        (["--checkpoint", str(checkpoint), "--out", str(foreign)], ConfigError, "no exported detector"),
        (["--checkpoint", str(checkpoint), "--out", str(tmp_path)], ConfigError, "is a folder"),
        (["--checkpoint", str(tmp_path / "no"), "--out", str(tmp_path / "m.onnx")], CheckpointError, "does not exist"),
        (
            ["--checkpoint", str(checkpoint), "--out", str(tmp_path / "m.onnx"), "--precision", "int8"],
            DataError,
            "--calib",
        ),
    ):
        with pytest.raises(error, match=message):
            run(arguments)
    assert foreign.read_text() == "mine"
    assert not (tmp_path / "m.onnx").exists()
    with pytest.raises(ConfigError, match="Identity backbone"):
        network.backbone(Graph(), nn.Identity(), "x")


def test_example_needs_no_torch_and_is_what_the_guide_shows(checkpoint: Path, tmp_path: Path) -> None:
    script = ROOT / "examples" / "onnx_detect.py"
    assert script.read_text() in (ROOT / "docs" / "guides" / "export.md").read_text()
    assert len(script.read_text().splitlines()) <= 30
    run(["--checkpoint", str(checkpoint), "--out", str(tmp_path / "model.onnx")])
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (80, 100, 3), dtype=np.uint8)).save(tmp_path / "p.png")
    without = "import sys, runpy; sys.modules['torch'] = sys.modules['ovbridge'] = None; sys.argv = sys.argv[1:]; "
    ran = subprocess.run(
        [sys.executable, "-c", f"{without}runpy.run_path(sys.argv[0])", str(script), "model.onnx", "p.png"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    lines = ran.stdout.splitlines()
    assert lines
    assert {line.split()[0] for line in lines} <= {"mug", "kite"}
