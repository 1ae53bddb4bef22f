"""A real `ovbridge serve` process under clients that mean no good, and its end."""

from __future__ import annotations

import http.client
import io
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ovbridge.detector import DetectorMetadata, build_detector, save_detector, world_r18_fpn
from ovbridge.vocabulary import Vocabulary

START_SECONDS = 400
MAX_GROWTH = 500_000_000
pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc for the memory in use")


@dataclass(frozen=True)
class Server:
    process: subprocess.Popen[str]
    host: str
    port: int

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def ask(self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection(self.host, self.port, timeout=120)
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        content = answer.read()
        connection.close()
        return answer.status, json.loads(content)

    def check_healthy(self, before: int) -> None:
        time.sleep(2.0)
        assert self.ask("GET", "/healthz") == (200, {"status": "ok"})
        assert self.ask("GET", "/readyz")[0] == 200
        assert self.memory() - before < MAX_GROWTH


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    path = tmp_path_factory.mktemp("serve") / "detector.safetensors"
    model = build_detector(world_r18_fpn(embedding_dim=8, channels=(8, 8, 8, 8)), torch.eye(8)[:2])
    vocabulary = tuple(Vocabulary.of_names(["mug", "kite"]).to_json())
    metadata = DetectorMetadata(
        stage="base", vocabulary=vocabulary, text_encoder="none", extra={"test_size": [96, 160]}
    )
    save_detector(path, model, metadata)
    words = ["serve", "--checkpoint", str(path), "--host", "127.0.0.1", "--port", "0", "--workers", "1"]
    process = subprocess.Popen(
        [sys.executable, "-m", "ovbridge.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    killer = threading.Timer(START_SECONDS, process.kill)
    killer.start()
    assert process.stdout is not None
    line = process.stdout.readline()
    killer.cancel()
    assert line.startswith("OVBridge serves at http://127.0.0.1:"), process.stderr and process.stderr.read()
    yield Server(process, "127.0.0.1", int(line.split("http://127.0.0.1:")[1].split()[0]))
    process.kill()
    process.wait()


def _png(pixels: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def test_a_gigabyte_is_refused_unread(server: Server) -> None:
    before = server.memory()
    block = b"x" * 1_000_000
    # With the length told in advance, and in chunks that tell nothing.
    for headers in ({"Content-Length": "1000000000"}, {}):
        body = (block for _ in range(1000))
        status, answer = server.ask("POST", "/v1/detect", body, headers | {"Content-Type": "image/png"})
        assert (status, answer["error"]["code"]) == (413, "body_too_large")
    server.check_healthy(before)


def test_a_picture_of_900_megapixels_is_refused_undecoded(server: Server) -> None:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = zlib.compressobj(9)
    packed = b"".join(rows.compress(b"\0" * 90_001) for _ in range(30)) + rows.flush()
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 30_000, 30_000, 8, 2, 0, 0, 0))
    png = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", packed) + chunk(b"IEND", b"")
    before = server.memory()
    status, answer = server.ask("POST", "/v1/detect", png, {"Content-Type": "image/png"})
    assert (status, answer["error"]["code"]) == (413, "too_many_pixels")
    server.check_healthy(before)


def test_a_hundred_thousand_names_are_refused(server: Server) -> None:
    before = server.memory()
    names = [f"name {i}" for i in range(100_000)]
    body = json.dumps({"names": names})
    status, answer = server.ask("POST", "/v1/embed", body, {"Content-Type": "application/json"})
    assert (status, answer["error"]["code"]) == (422, "too_many_names")
    query = "&".join(f"names=n{i}" for i in range(60_000))
    status, answer = server.ask("POST", f"/v1/detect?{query}")
    assert (status, answer["error"]["code"]) == (422, "query_too_long")
    parts = (
        "".join(f'--b\r\nContent-Disposition: form-data; name="names"\r\n\r\n{name}\r\n' for name in names)
        + "--b--\r\n"
    )
    form = {"Content-Type": "multipart/form-data; boundary=b"}
    assert server.ask("POST", "/v1/detect", parts, form)[0] == 422
    server.check_healthy(before)


def test_slow_clients_do_not_stop_others(server: Server) -> None:
    slow = []
    for _ in range(40):
        client = socket.create_connection((server.host, server.port))
        client.sendall(b"POST /v1/detect HTTP/1.1\r\nHost: x\r\n")
        slow.append(client)
    answered = time.monotonic()
    assert (
        server.ask("POST", "/v1/detect", _png(np.zeros((30, 40, 3), np.uint8)), {"Content-Type": "image/png"})[0] == 200
    )
    assert time.monotonic() - answered < 10
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and slow:
        # One more header byte every second: the time for all of them is what counts.
        for client in list(slow):
            client.settimeout(0.01)
            try:
                client.sendall(b"X")
                if b"408" in client.recv(200):
                    slow.remove(client)
            except TimeoutError:
                continue
            except OSError:
                slow.remove(client)
        time.sleep(0.5)
    assert not slow


def test_nonsense_is_no_request(server: Server) -> None:
    client = socket.create_connection((server.host, server.port), timeout=60)
    client.sendall(b"\x16\x03\x01 no HTTP at all\r\n\r\n")
    assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert server.ask("GET", "/healthz")[0] == 200


def test_sigterm_finishes_what_was_begun(server: Server) -> None:
    """The last test of this file: it ends the server."""
    png = _png(np.random.default_rng(0).integers(0, 255, (300, 400, 3), dtype=np.uint8))
    statuses: list[int] = []

    def ask() -> None:
        statuses.append(server.ask("POST", "/v1/detect", png, {"Content-Type": "image/png"})[0])

    threads = [threading.Thread(target=ask) for _ in range(6)]
    for thread in threads:
        thread.start()
    metrics = ""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and "ovbridge_requests_under_way 6.0" not in metrics and not statuses:
        connection = http.client.HTTPConnection(server.host, server.port, timeout=60)
        connection.request("GET", "/metrics")
        metrics = connection.getresponse().read().decode()
        connection.close()
    server.process.send_signal(signal.SIGTERM)
    for thread in threads:
        thread.join(120)
    assert statuses == [200] * 6
    assert server.process.wait(120) == 0
    assert server.process.stderr is not None
    log = server.process.stderr.read()
    assert "Traceback" not in log
    assert log.strip().endswith("stopped: all requests are answered")
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection((server.host, server.port), timeout=5)
