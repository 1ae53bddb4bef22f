"""From a request to its fields and its picture, with every limit checked on the way."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect, Request

from ovbridge.serve.failures import RequestError, body_too_large, busy, unprocessable
from ovbridge.serve.limits import Limits

IMAGE_FIELDS = ("image", "file")
"""Names of the file part; both are taken."""

IMAGE_TYPES = ("image/jpeg", "image/png", "image/webp", "image/gif", "image/bmp", "image/tiff")
"""What a file part should say it is; the bytes decide."""

MAX_PART_HEADER_BYTES = 4_000


@dataclass(kw_only=True)
class Upload:
    """What a body held."""

    fields: dict[str, list[str]] = field(default_factory=dict)
    """Form fields in order, by name."""
    is_list: bool = False
    """Whether each value is one whole item; in a form, commas separate items too."""
    image: bytes | None = None
    """The picture as uploaded."""


class BodyBudget:
    """The bytes of all bodies that are under way."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._held = 0

    @asynccontextmanager
    async def body(self, request: Request) -> AsyncIterator[bytes]:
        """The body of `request`; its bytes count as held until the block is left.

        Raises RequestError: 413 as soon as it is too large, 408 where it takes too long, 503 where all bodies
        together are too large, 400 where the client leaves.
        """
        held = 0
        chunks = bytearray()
        try:
            try:
                async with asyncio.timeout(self._limits.body_seconds):
                    async for chunk in request.stream():
                        if len(chunks) + len(chunk) > self._limits.body_bytes:
                            raise body_too_large(self._limits.body_bytes)
                        if self._held + len(chunk) > self._limits.bodies_bytes:
                            raise busy(503, "too many uploads at once: try again in a moment")
                        held += len(chunk)
                        self._held += len(chunk)
                        chunks += chunk
            except TimeoutError:
                raise RequestError(
                    408, "body_too_slow", f"the body did not arrive within {self._limits.body_seconds:g} s"
                ) from None
            except ClientDisconnect:
                raise RequestError(400, "client_left", "the connection was closed before the body was here") from None
            yield bytes(chunks)
        finally:
            self._held -= held


def media_type(request: Request) -> str:
    """The content type without its parameters, in lower case; raises 415 where it is none that is taken."""
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


def read_upload(content: bytes, content_type: str, limits: Limits) -> Upload:
    """Fields and picture of a body; JSON gives fields alone.

    Raises RequestError: 415 for another content type, 422 where the body does not fit its type or has too many
    parts.
    """
    kind = content_type.split(";")[0].strip().lower()
    if kind == "multipart/form-data":
        return _read_multipart(content, content_type, limits)
    if kind == "application/json":
        return _read_json(content)
    if kind == "application/x-www-form-urlencoded":
        return _read_urlencoded(content, limits)
    # Whichever kind of picture it claims to be, rightly spelt or not: the bytes decide.
    if kind.startswith("image/") or kind == "application/octet-stream":
        return Upload(image=content)
    if not kind and not content:
        return Upload()
    raise RequestError(
        415,
        "unsupported_media_type",
        f"content type {kind[:60]!r} is not taken: send multipart/form-data with a file called 'image', "
        "or the picture itself as image/jpeg or image/png",
    )


class _TooManyPartsError(Exception):
    pass


class _Parts:
    """Collects the parts of a multipart body."""

    def __init__(self, most_parts: int) -> None:
        self.upload, self.is_whole = Upload(), False
        self._most_parts, self._parts = most_parts, 0
        self._header_name, self._header_value = bytearray(), bytearray()
        self._headers: dict[bytes, bytes] = {}
        self._data = bytearray()

    def on_part_begin(self) -> None:
        self._parts += 1
        if self._parts > self._most_parts:
            raise _TooManyPartsError
        self._headers, self._data = {}, bytearray()

    def on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def on_header_end(self) -> None:
        self._headers[bytes(self._header_name).lower()] = bytes(self._header_value)
        self._header_name, self._header_value = bytearray(), bytearray()

    def on_part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def on_part_end(self) -> None:
        _, options = parse_options_header(self._headers.get(b"content-disposition", b""))
        if b"name" not in options:
            raise unprocessable("bad_body", "a part of the form has no name: write Content-Disposition with name=")
        name = options[b"name"].decode("utf-8", "replace")
        if b"filename" not in options:
            self.upload.fields.setdefault(name, []).append(_text(bytes(self._data)))
            return
        if name not in IMAGE_FIELDS:
            raise unprocessable("unknown_field", f"a file called {name[:60]!r} is not taken: call it 'image'")
        if self.upload.image is not None:
            raise unprocessable("bad_body", "there are two pictures: send one a request")
        self.upload.image = bytes(self._data)

    def on_end(self) -> None:
        self.is_whole = True


def _read_multipart(content: bytes, content_type: str, limits: Limits) -> Upload:
    _, options = parse_options_header(content_type.encode("latin-1", "replace"))
    boundary = options.get(b"boundary")
    if not boundary:
        raise unprocessable("bad_body", "the multipart body has no boundary: let your HTTP library write the header")
    parts = _Parts(limits.names + 16)
    callbacks: Any = {
        name: getattr(parts, name)
        for name in (
            "on_part_begin", "on_part_data", "on_part_end", "on_header_field", "on_header_value", "on_header_end",
            "on_end",
        )
    }  # fmt: skip
    try:
        parser = MultipartParser(boundary, callbacks)
        parser.write(content)
        parser.finalize()
    except _TooManyPartsError:
        raise _too_many_fields(limits) from None
    except FormParserError:
        raise _damaged() from None
    # The parser is content without the closing boundary: what was cut would be missing without a word.
    if not parts.is_whole:
        raise _damaged()
    return parts.upload


def _damaged() -> RequestError:
    return unprocessable("bad_body", "the multipart body is damaged or cut short: send the whole form again")


def _read_urlencoded(content: bytes, limits: Limits) -> Upload:
    try:
        pairs = parse_qsl(_text(content), keep_blank_values=True, max_num_fields=limits.names + 16)
    except ValueError:
        raise _too_many_fields(limits) from None
    upload = Upload()
    for name, value in pairs:
        upload.fields.setdefault(name, []).append(value)
    return upload


def _read_json(content: bytes) -> Upload:
    try:
        record = json.loads(content)
    except (ValueError, RecursionError):
        raise unprocessable("bad_body", "the body is not JSON") from None
    if not isinstance(record, dict):
        raise unprocessable("bad_body", 'the JSON body must be an object, e.g. {"names": ["red mug"]}')
    fields: dict[str, list[str]] = {}
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        if not all(isinstance(item, str) for item in values) or (name == "names" and not isinstance(value, list)):
            raise unprocessable("bad_body", f"{name[:60]!r} must be a list of texts")
        fields[name] = values
    return Upload(fields=fields, is_list=True)


def _too_many_fields(limits: Limits) -> RequestError:
    return unprocessable("too_many_names", f"the form has too many fields: at most {limits.names} names are taken")


def _text(data: bytes) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        raise unprocessable("bad_body", "a form field is not UTF-8 text") from None
