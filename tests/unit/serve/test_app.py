from __future__ import annotations

import asyncio
import io
import json
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from ovbridge.serve.app import Service, create_app
from ovbridge.serve.engine import DetectJob, Engine

Encoded = Callable[..., bytes]
Noise = Callable[..., np.ndarray]
FEW = settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)


def _post(client: TestClient, picture: bytes, **parameters: Any) -> httpx.Response:
    return client.post("/v1/detect", files={"image": ("p.png", picture, "image/png")}, data=parameters)


def _refused(response: httpx.Response, status: int, code: str) -> str:
    """The message of a refusal, which must have the one form."""
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"status", "code", "message"}
    assert (error["status"], error["code"]) == (status, code)
    return str(error["message"])


def _header_only_png(width: int, height: int) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_detect_agrees_with_the_detector(client: TestClient, engine: Engine, picture: bytes) -> None:
    answer = _post(client, picture, names="bell, mug", threshold="0.4", max_detections="7").json()
    expected = engine.detector.detect(
        np.asarray(Image.open(io.BytesIO(picture))), ["bell", "mug"], score_threshold=0.4, max_detections=7
    )
    assert (answer["width"], answer["height"], answer["names"]) == (200, 120, ["bell", "mug"])
    assert [found["name"] for found in answer["detections"]] == expected.class_names
    assert len(answer["detections"]) > 0
    np.testing.assert_allclose([found["score"] for found in answer["detections"]], expected.scores, atol=1e-4)
    np.testing.assert_allclose([found["box_xyxy"] for found in answer["detections"]], expected.boxes_xyxy, atol=0.02)


def test_every_way_to_send_a_picture_agrees(client: TestClient, picture: bytes) -> None:
    wanted = _post(client, picture, names="mug,kite", threshold="0.5").json()
    query = "names=mug&names=kite&threshold=0.5"
    raw = client.post(f"/v1/detect?{query}", content=picture, headers={"content-type": "image/png"})
    misspelt = client.post(f"/v1/detect?{query}", content=picture, headers={"content-type": "image/jpg"})
    octets = client.post(f"/v1/detect?{query}", content=picture, headers={"content-type": "application/octet-stream"})
    form = client.post(f"/v1/detect?{query}", files={"file": picture})
    assert raw.json() == misspelt.json() == octets.json() == form.json() == wanted


def test_without_names_the_vocabulary_is_used(client: TestClient, picture: bytes, engine: Engine) -> None:
    assert _post(client, picture).json()["names"] == list(engine.detector.names)
    for empty in ("", " , "):
        assert "leave the parameter out" in _refused(_post(client, picture, names=empty), 422, "bad_parameter")


def test_synonyms_and_thresholds_of_their_own(client: TestClient, picture: bytes) -> None:
    answer = _post(client, picture, names="cup|mug,bell=1", threshold="0").json()
    assert answer["names"] == ["cup", "bell"]
    plain = _post(client, picture, names="mug,bell", threshold="0").json()
    assert {found["name"] for found in plain["detections"]} == {"mug", "bell"}
    assert {found["name"] for found in answer["detections"]} == {"cup"}


def test_boxes_are_in_pixels_of_the_upright_picture(client: TestClient, noise: Noise) -> None:
    turned = Image.fromarray(noise(3, 90, 150))
    exif = turned.getexif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    turned.save(buffer, "JPEG", exif=exif)
    answer = _post(client, buffer.getvalue(), threshold="0").json()
    assert (answer["width"], answer["height"]) == (90, 150)
    assert max(found["box_xyxy"][3] for found in answer["detections"]) > 100


def test_batched_results_equal_single_results(engine: Engine, encoded: Encoded, noise: Noise) -> None:
    pictures = [engine.picture(encoded(noise(seed))) for seed in range(4)]
    options = [
        (None, 0.3, 100),
        (["mug"], 0.0, 5),
        (["kite", "a new name"], 0.2, 50),
        (["bell|cup", "kite=0.6"], 0.1, 9),
    ]
    jobs = [
        DetectJob(picture=p, wanted=engine.wanted(names, score_threshold=score, max_detections=most))
        for p, (names, score, most) in zip(pictures, options, strict=True)
    ]
    assert len({engine.batch_key(job) for job in jobs}) == 1
    for together, job in zip(engine.run(jobs), jobs, strict=True):
        alone = engine.run([job])[0]
        assert together.class_names == alone.class_names
        assert len(alone) > 0
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-5)
        np.testing.assert_allclose(together.boxes_xyxy, alone.boxes_xyxy, atol=1e-3)


def test_pictures_of_other_shapes_are_not_batched(engine: Engine, encoded: Encoded, noise: Noise) -> None:
    wanted = engine.wanted(None, score_threshold=0.5, max_detections=1)
    wide = DetectJob(picture=engine.picture(encoded(noise(0, 100, 200))), wanted=wanted)
    tall = DetectJob(picture=engine.picture(encoded(noise(0, 200, 100))), wanted=wanted)
    assert engine.batch_key(wide) != engine.batch_key(tall)


def test_embeddings_are_unit_and_the_stored_ones(
    client: TestClient, engine: Engine, picture: bytes, encoded: Encoded
) -> None:
    texts = client.post("/v1/embed", json={"names": ["mug", "a new name"]}).json()
    assert texts["dim"] == 16
    assert [entry["name"] for entry in texts["names"]] == ["mug", "a new name"]
    np.testing.assert_allclose(texts["names"][0]["embedding"], engine.text_rows(["mug"])[0], atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(texts["names"][1]["embedding"]), 1, atol=1e-5)
    half = np.zeros((10, 20, 3), np.uint8)
    half[:, 10:, 0] = 255
    crop = client.post("/v1/embed", files={"image": encoded(half)}, data={"box": "10,0,20,10"}).json()
    assert crop["names"] == []
    red = np.array([255.0, 0, 0, *[1.0] * 13])
    np.testing.assert_allclose(crop["image"], red / np.linalg.norm(red), atol=1e-5)
    both = client.post("/v1/embed", files={"image": picture}, data={"names": "mug"}).json()
    assert both["image"] is not None
    assert len(both["names"]) == 1


def test_every_text_of_a_list_is_embedded_as_it_is(client: TestClient) -> None:
    texts = ["a, b", "c", "mug", "mug"]
    found = client.post("/v1/embed", json={"names": texts}).json()["names"]
    assert [entry["name"] for entry in found] == texts
    assert found[2] == found[3]
    assert found[0]["embedding"] != found[1]["embedding"]


def test_vocabulary(client: TestClient, engine: Engine) -> None:
    answer = client.get("/v1/vocabulary").json()
    assert [entry["name"] for entry in answer["names"]] == list(engine.detector.names)
    assert answer["checkpoint"] == "tiny.safetensors"
    assert answer["search"] is False
    assert answer["max_pixels"] == engine.limits.pixels


@pytest.mark.parametrize(
    ("parameters", "code", "words"),
    [
        ({"threshold": "1.5"}, "bad_parameter", "threshold"),
        ({"threshold": "nan"}, "bad_parameter", "threshold"),
        ({"max_detections": "0"}, "bad_parameter", "max_detections"),
        ({"max_detections": "many"}, "bad_parameter", "max_detections"),
        ({"treshold": "0.5"}, "unknown_parameter", "did you mean 'threshold'"),
        ({"names": ",".join(f"n{i}" for i in range(21))}, "too_many_names", "20 names"),
        ({"names": "x" * 101}, "name_too_long", "101 characters"),
        ({"names": "http://169.254.169.254/latest"}, "address_refused", "nothing is fetched"),
        ({"url": "http://127.0.0.1/a.jpg"}, "address_refused", "not fetched"),
        ({"names": "an unknown thing"}, "cannot_do", "unknown"),
        ({"names": "cup|,mug"}, "cannot_do", "empty"),
        ({"names": "mug=2"}, "cannot_do", "threshold"),
    ],
)
def test_bad_parameters(client: TestClient, picture: bytes, parameters: dict[str, str], code: str, words: str) -> None:
    assert words in _refused(_post(client, picture, **parameters), 422, code)


def test_a_hundred_thousand_names(client: TestClient, picture: bytes, encoded: Encoded) -> None:
    many = [f"n{i}" for i in range(100_000)]
    roomy = {"image": ("p.png", encoded(np.zeros((8, 8, 3), np.uint8)), "image/png")}
    form = {"content-type": "application/x-www-form-urlencoded"}
    _refused(
        client.post("/v1/embed", content="&".join(f"names={n}" for n in many)[:190_000], headers=form),
        422,
        "too_many_names",
    )
    _refused(client.post("/v1/detect", files=roomy, data={"names": ",".join(many)[:190_000]}), 422, "too_many_names")
    _refused(client.post("/v1/detect", files=roomy, data={"names": many[:1000]}), 422, "too_many_names")
    _refused(client.get("/v1/vocabulary?names=" + "x," * 10_000), 422, "query_too_long")


@pytest.mark.parametrize(
    ("content", "code"),
    [
        (b"", "no_image"),
        (b"not a picture", "bad_image"),
        (b"\xff\xd8\xff\xe0 nothing more", "bad_image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n", "bad_image"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "bad_image"),
    ],
)
def test_bad_pictures(client: TestClient, content: bytes, code: str) -> None:
    _refused(_post(client, content), 422, code)


def test_truncated_picture(client: TestClient, picture: bytes) -> None:
    _refused(_post(client, picture[: len(picture) // 2]), 422, "bad_image")


def test_too_many_pixels_are_refused_by_the_header(client: TestClient) -> None:
    _refused(_post(client, _header_only_png(30_000, 30_000)), 413, "too_many_pixels")
    assert "400x251" in _refused(_post(client, _header_only_png(400, 251)), 413, "too_many_pixels")


def test_too_large_a_body(client: TestClient) -> None:
    _refused(
        client.post("/v1/detect", content=b"x" * 200_001, headers={"content-type": "image/png"}), 413, "body_too_large"
    )

    def pieces() -> Iterator[bytes]:
        for _ in range(30):
            yield b"x" * 10_000

    _refused(client.post("/v1/detect", content=pieces(), headers={"content-type": "image/png"}), 413, "body_too_large")


def test_requests_without_a_picture(client: TestClient) -> None:
    _refused(client.post("/v1/detect"), 422, "no_image")
    _refused(client.post("/v1/detect", data={"names": "mug"}), 422, "no_image")
    assert "not fetched" in _refused(
        client.post("/v1/detect", data={"image": "http://10.0.0.1/a.jpg"}), 422, "no_image"
    )
    _refused(client.post("/v1/embed"), 422, "nothing_to_embed")
    _refused(client.post("/v1/embed", data={"box": "0,0,1,1", "names": "mug"}), 422, "no_image")


@pytest.mark.parametrize(
    ("body", "kind", "status", "code"),
    [
        (b"{}", "text/plain", 415, "unsupported_media_type"),
        (b"{", "application/json", 422, "bad_body"),
        (b"[]", "application/json", 422, "bad_body"),
        (b'{"names": "mug"}', "application/json", 422, "bad_body"),
        (b'{"names": [1]}', "application/json", 422, "bad_body"),
        (b'{"names": []}', "application/json", 422, "bad_parameter"),
        (b'{"names": ["mug", " "]}', "application/json", 422, "bad_parameter"),
        (json.dumps({"names": ["n"] * 21}).encode(), "application/json", 422, "too_many_names"),
        (b'{"names": ["\\ud800"]}', "application/json", 422, "bad_parameter"),
        (b"x", "multipart/form-data", 422, "bad_body"),
        (b"x", "multipart/form-data; boundary=b", 422, "bad_body"),
        (b"--b\r\n\r\nx\r\n--b--\r\n", "multipart/form-data; boundary=b", 422, "bad_body"),
        (b"--b--\r\n", "multipart/form-data; boundary=b", 422, "nothing_to_embed"),
    ],
)
def test_bad_bodies(client: TestClient, body: bytes, kind: str, status: int, code: str) -> None:
    _refused(client.post("/v1/embed", content=body, headers={"content-type": kind}), status, code)


@pytest.mark.parametrize("cut", [3, 12, 60, 300])
def test_a_form_that_was_cut_is_refused(client: TestClient, picture: bytes, cut: int) -> None:
    # From the end: in the closing boundary, in the value of names, in the headers of names, in the picture.
    head = b'--bound\r\nContent-Disposition: form-data; name="%s"%s\r\n\r\n'
    form = head % (b"image", b'; filename="p.png"') + picture + b"\r\n" + head % (b"names", b"")
    form += b"mug\r\n--bound--"
    headers = {"content-type": "multipart/form-data; boundary=bound"}
    assert client.post("/v1/detect", content=form, headers=headers).json()["names"] == ["mug"]
    message = _refused(client.post("/v1/detect", content=form[:-cut], headers=headers), 422, "bad_body")
    assert "cut short" in message


def test_boxes_outside_the_picture(client: TestClient, picture: bytes) -> None:
    message = _refused(
        client.post("/v1/embed", files={"image": picture}, data={"box": "300,0,400,10"}), 422, "bad_parameter"
    )
    assert "200x120" in message
    _refused(client.post("/v1/embed", files={"image": picture}, data={"box": "1,2,3"}), 422, "bad_parameter")


def test_routes_that_are_not(client: TestClient) -> None:
    _refused(client.get("/v1/nothing"), 404, "not_found")
    _refused(client.get("/v1/detect"), 405, "method_not_allowed")
    _refused(client.get("/v1/search?text=mug"), 404, "not_found")


@pytest.mark.parametrize(
    "path", ["/page/..%2fapp.py", "/page/../app.py", "/page/%2e%2e/engine.py", "/page//etc/passwd"]
)
def test_no_way_out_of_the_page_files(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_page_files_and_their_headers(client: TestClient) -> None:
    page = client.get("/")
    assert page.status_code == 200
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert client.get("/", headers={"if-none-match": page.headers["etag"]}).status_code == 304
    for path in (
        "/docs",
        "/page/page.js",
        "/page/page.css",
        "/page/docs.js",
        "/page/icon.svg",
        "/page/samples/snow.jpg",
    ):
        assert client.get(path).status_code == 200
        assert "http:" not in client.get(path).text.replace("http://www.w3.org/2000/svg", "") or path.endswith("jpg")


def test_health_and_metrics(client: TestClient, picture: bytes) -> None:
    assert client.get("/healthz").json() == {"status": "ok"}
    assert client.get("/readyz").json() == {"status": "ready"}
    _post(client, picture)
    text = client.get("/metrics").text
    assert 'ovbridge_requests_total{method="POST",route="/v1/detect",status="200"}' in text
    assert "ovbridge_batch_size_bucket" in text
    client.get("/some/path")
    assert "/some/path" not in client.get("/metrics").text


@pytest.mark.parametrize("path", ["/", "/healthz", "/readyz", "/v1/vocabulary"])
def test_head_is_answered_as_get(client: TestClient, path: str) -> None:
    head, get = client.head(path), client.get(path)
    assert (head.status_code, head.headers["content-length"]) == (200, get.headers["content-length"])
    assert client.head("/v1/detect").status_code == 405
    assert "head" not in client.get("/openapi.json").json()["paths"].get(path, {})


def test_a_key_beyond_ascii(engine: Engine) -> None:
    key = "schl\u00fcssel \u00e0"
    with TestClient(create_app(Service(engine, workers=1), api_key=key)) as client:
        for raw in (key.encode("utf-8"), key.encode("latin-1")):
            for headers in ([(b"X-API-Key", raw)], [(b"Authorization", b"Bearer " + raw)]):
                assert client.get("/v1/vocabulary", headers=headers).status_code == 200
        _refused(client.get("/v1/vocabulary", headers=[(b"X-API-Key", b"schl\xc3ssel")]), 401, "no_key")


def test_api_key(engine: Engine) -> None:
    with TestClient(create_app(Service(engine, workers=1), api_key="s3cret")) as client:
        _refused(client.get("/v1/vocabulary"), 401, "no_key")
        _refused(client.get("/v1/vocabulary", headers={"X-API-Key": "s3cre"}), 401, "no_key")
        _refused(client.post("/v1/detect", content=b"x" * 300_000), 401, "no_key")
        assert client.get("/v1/vocabulary", headers={"X-API-Key": "s3cret"}).status_code == 200
        assert client.get("/v1/vocabulary", headers={"Authorization": "Bearer s3cret"}).status_code == 200
        assert client.get("/").status_code == client.get("/healthz").status_code == 200
        assert "securitySchemes" in client.get("/openapi.json").json()["components"]


def _slowed(engine: Engine, seconds: float) -> Callable[..., Any]:
    def run(jobs: Any) -> Any:
        time.sleep(seconds)
        return engine.run(jobs)

    return run


def test_no_answer_in_time(picture: bytes, monkeypatch: pytest.MonkeyPatch, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(request_seconds=0.2)
    service = Service(engine, workers=1)
    with TestClient(create_app(service)) as client:
        monkeypatch.setattr(service.batcher, "_run", _slowed(engine, 0.6))
        _refused(_post(client, picture), 504, "too_slow")
        assert client.get("/readyz").status_code == 200


def test_too_many_at_once(picture: bytes, monkeypatch: pytest.MonkeyPatch, make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(requests=2)
    service = Service(engine, workers=1)
    with TestClient(create_app(service)) as client, ThreadPoolExecutor(6) as pool:
        monkeypatch.setattr(service.batcher, "_run", _slowed(engine, 0.4))
        answers = list(pool.map(lambda _: _post(client, picture), range(6)))
        codes = sorted(answer.status_code for answer in answers)
        assert codes.count(200) >= 2
        assert codes.count(429) >= 1
        assert set(codes) == {200, 429}
        refused = next(answer for answer in answers if answer.status_code == 429)
        assert refused.headers["retry-after"] == "1"
        monkeypatch.undo()
        assert _post(client, picture).status_code == 200


def test_a_fault_of_the_server_is_a_500_without_its_inside(
    picture: bytes, monkeypatch: pytest.MonkeyPatch, engine: Engine
) -> None:
    service = Service(engine, workers=1)
    with TestClient(create_app(service), raise_server_exceptions=False) as client:

        def broken(jobs: Any) -> Any:
            raise RuntimeError("secret inside")

        monkeypatch.setattr(service.batcher, "_run", broken)
        assert "secret" not in _refused(_post(client, picture), 500, "internal")
        monkeypatch.undo()
        assert _post(client, picture).status_code == 200


def test_shutting_down(engine: Engine, picture: bytes) -> None:
    service = Service(engine, workers=1)
    with TestClient(create_app(service)) as client:
        service.batcher.close()
        _refused(client.get("/readyz"), 503, "unavailable")
        _refused(_post(client, picture), 503, "unavailable")
        assert client.get("/healthz").status_code == 200


@FEW
@given(content=st.binary(max_size=300))
def test_any_bytes(client: TestClient, content: bytes) -> None:
    assert _post(client, content).status_code in (413, 422)


@FEW
@given(cut=st.integers(0, 400), at=st.integers(0, 400), byte=st.integers(0, 255))
def test_damaged_pictures(client: TestClient, cut: int, at: int, byte: int, encoded: Encoded, noise: Noise) -> None:
    content = bytearray(encoded(noise(1, 12, 12), "JPEG"))
    content[at % len(content)] = byte
    assert _post(client, bytes(content[: len(content) - cut % len(content)])).status_code in (200, 413, 422)


@FEW
@given(names=st.lists(st.text(max_size=30), max_size=6))
def test_any_names(client: TestClient, names: list[str]) -> None:
    answer = client.post("/v1/embed", json={"names": names})
    assert answer.status_code in (200, 422)
    if answer.status_code == 200:
        given_names = [part.strip() for name in names for part in name.split(",") if part.strip()]
        assert [entry["name"] for entry in answer.json()["names"]] == list(dict.fromkeys(given_names))


def test_a_slow_body_is_given_up(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(body_seconds=0.2)
    app = create_app(Service(engine, workers=1))

    async def drip() -> Any:
        yield b"x"
        await asyncio.sleep(1.0)
        yield b"x"

    async def ask() -> httpx.Response:
        async with app.router.lifespan_context(app):
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
                return await client.post("/v1/detect", content=drip(), headers={"content-type": "image/png"})

    _refused(asyncio.run(ask()), 408, "body_too_slow")
