"""`ovbridge serve`: the detector as an HTTP service with a web page."""

from __future__ import annotations

import importlib.util
import math
import os
from collections.abc import Sequence
from pathlib import Path

from ovbridge.cli.arguments import DetectionPrecisionName, call
from ovbridge.errors import ConfigError

EXAMPLES = """
ovbridge serve --port 8000
ovbridge serve --checkpoint runs/demo/detector.safetensors --store runs/demo/labels
ovbridge serve --host 0.0.0.0 --api-key-file key.txt
"""

KEY_VARIABLE = "OVBRIDGE_API_KEY"


def run(argv: Sequence[str]) -> None:
    """Parse `argv` and serve."""
    call(serve, argv, verb="serve", examples=EXAMPLES)


def serve(
    *,
    checkpoint: str = "",
    host: str = "127.0.0.1",
    port: int = 8000,
    store: Path | None = None,
    clip: str | None = None,
    device: str | None = None,
    precision: DetectionPrecisionName = "fp32",
    api_key_file: Path | None = None,
    max_batch: int = 8,
    workers: int | None = None,
    max_body_mb: float = 20.0,
    max_megapixels: float = 16.0,
    max_requests: int = 64,
    request_seconds: float = 30.0,
    verbose: bool = False,
) -> None:
    """Serve detection over HTTP, with a web page at / and the API's description at /docs.

    Args:
        checkpoint: a detector.safetensors, the folder of a run, or hf://owner/name; by default the built-in detector.
        host: address to listen on; 0.0.0.0 for every network of this machine.
        port: 0 takes a free one.
        store: label store whose regions the page and /v1/search look in.
        clip: text encoder for names that the checkpoint does not know; by default the one that it names.
        device: cpu, cuda or cuda:1; by default the GPU if there is one.
        precision: fp32; bf16, about half the time where the hardware has it; mixed, the best
            detections of fp32 in little more; auto, bf16 where the hardware has it.
        api_key_file: file with a key that /v1 then wants; the variable OVBRIDGE_API_KEY does the same.
        max_batch: most pictures in one pass of the model.
        workers: model threads; by default 2 on a CPU with several cores, else 1.
        max_body_mb: largest upload in megabytes.
        max_megapixels: largest picture.
        max_requests: most requests under way; further ones are told to come back (429).
        request_seconds: an answer that takes longer is given up (504).
        verbose: one line a request on standard error.
    """
    missing = [name for name in ("fastapi", "uvicorn", "python_multipart", "prometheus_client") if not _is_there(name)]
    if missing:
        raise ConfigError(f"serving needs {', '.join(missing)}: pip install 'ovbridge[serve]'")
    from ovbridge.console import stderr, stdout
    from ovbridge.inference import builtin_checkpoint
    from ovbridge.serve.app import Service
    from ovbridge.serve.engine import Engine
    from ovbridge.serve.limits import Limits
    from ovbridge.serve.run import address_of, listen
    from ovbridge.serve.run import serve as serve_forever

    body_bytes = _millions("--max-body-mb", max_body_mb)
    limits = Limits(
        body_bytes=body_bytes,
        bodies_bytes=max(Limits.bodies_bytes, 2 * body_bytes),
        pixels=_millions("--max-megapixels", max_megapixels),
        requests=int(_positive("--max-requests", max_requests)),
        request_seconds=_positive("--request-seconds", request_seconds),
    )
    _positive("--max-batch", max_batch)
    _positive("--workers", 1 if workers is None else workers)
    key = api_key(api_key_file)
    bound = listen(host, port)
    source = checkpoint or str(builtin_checkpoint())
    stderr.print(f"loading {source}", soft_wrap=True)
    engine = Engine.load(source, limits, device=device, clip=clip, precision=precision)
    search = None
    if store is not None:
        from ovbridge.serve.regions import RegionSearch

        search = RegionSearch.open(store, engine.encoder, engine.detector.model.device)
    service = Service(engine, search=search, max_batch=max_batch, workers=workers)
    address = address_of(bound)

    def announce() -> None:
        stdout.print(f"OVBridge serves at {address} (API: {address}/docs); Ctrl-C ends it", soft_wrap=True)
        stdout.file.flush()

    serve_forever(service, bound, api_key=key, on_ready=announce, verbose=verbose)
    stderr.print("stopped: all requests are answered")


def api_key(file: Path | None) -> str | None:
    """The key of `file`, else of the environment, else None.

    Raises ConfigError where it cannot be read, is empty, or is more than one line, which no header can carry.
    """
    if file is None:
        text = os.environ.get(KEY_VARIABLE)
        return _one_line(text, f"the variable {KEY_VARIABLE}") if text else None
    try:
        # A byte order mark, which some editors write, is no part of the key.
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the API key file {file} ({error}): write one line of text into it") from None
    return _one_line(text, f"the API key file {file}")


def _one_line(text: str, where: str) -> str:
    key = text.strip()
    if not key:
        raise ConfigError(f"{where} is empty: write one line of text into it")
    if any(ord(character) < 32 or ord(character) == 127 for character in key):
        raise ConfigError(f"{where} holds several lines or a control character: write one line of text into it")
    return key


def _positive(option: str, value: float) -> float:
    if not value > 0:
        raise ConfigError(f"{option} is {value:g}: give more than 0")
    return value


def _millions(option: str, value: float) -> int:
    units = _positive(option, value) * 1e6
    if not math.isfinite(units):
        raise ConfigError(f"{option} is {value:g}: give a smaller number")
    return int(units)


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None
