"""Whatever is wrong before the server starts: exit code 2 and one line."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from ovbridge.cli.main import run
from ovbridge.cli.serve import api_key
from ovbridge.errors import ConfigError


def _error(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert run(["serve", *map(str, words)]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ")
    return lines[-1]


def test_absent_checkpoint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "none.safetensors" in _error(capsys, "--checkpoint", tmp_path / "none.safetensors", "--port", 0)


def test_port_in_use(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        line = _error(capsys, "--checkpoint", tmp_path / "x.safetensors", "--port", port)
    assert f"127.0.0.1:{port}" in line
    assert "--port" in line


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--host", "no.such.host.invalid"), "no.such.host.invalid"),
        (("--host", "a" * 300), "cannot listen"),
        (("--host", "\u00fc" * 80), "cannot listen"),
        (("--port", "70000"), "--port is 70000"),
        (("--port", "-1"), "--port is -1"),
        (("--max-body-mb", "inf"), "--max-body-mb"),
        (("--max-megapixels", "1e305"), "--max-megapixels"),
        (("--max-requests", "0"), "--max-requests"),
        (("--workers", "0"), "--workers"),
        (("--api-key-file", "no-such-file"), "no-such-file"),
    ],
)
def test_bad_options(words: tuple[str, ...], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = _error(capsys, "--checkpoint", tmp_path / "absent.safetensors", *words)
    assert expected in line
    assert "absent.safetensors" not in line


def test_key_comes_from_file_or_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OVBRIDGE_API_KEY", raising=False)
    assert api_key(None) is None
    monkeypatch.setenv("OVBRIDGE_API_KEY", "from-environment")
    assert api_key(None) == "from-environment"
    file = tmp_path / "key.txt"
    file.write_text("from-file\n")
    assert api_key(file) == "from-file"
    file.write_text("from-file\n", encoding="utf-8-sig")
    assert api_key(file) == "from-file"


@pytest.mark.parametrize(("text", "words"), [(" \n", "empty"), ("one\ntwo\n", "several lines")])
def test_a_key_that_no_client_could_send(
    text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "key.txt"
    file.write_text(text)
    monkeypatch.setenv("OVBRIDGE_API_KEY", text)
    for given in (file, None):
        with pytest.raises(ConfigError, match=words):
            api_key(given)
