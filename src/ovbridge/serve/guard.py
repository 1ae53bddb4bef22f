"""What stands before the application: keys, counts, lengths known in advance, and headers for browsers."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ovbridge.serve.failures import RequestError, body_too_large, busy, unprocessable
from ovbridge.serve.limits import Limits
from ovbridge.serve.metrics import Metrics

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
}

_FREE = ("/healthz", "/readyz", "/metrics")
"""Answered however busy the server is."""


@dataclass
class Load:
    """Requests under way."""

    under_way: int = 0


class Guard:
    """ASGI middleware: refuses early what need not reach the application, and counts everything."""

    def __init__(
        self, app: ASGIApp, *, limits: Limits, metrics: Metrics, load: Load, routes: frozenset[str], api_key: str | None
    ) -> None:
        self._app, self._limits, self._metrics, self._load, self._routes = app, limits, metrics, load, routes
        self._key_digest = None if api_key is None else _digest(api_key.encode("utf-8", "surrogateescape"))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or answer at once."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started, status = time.perf_counter(), 500
        route = scope["path"] if scope["path"] in self._routes else "other"

        async def send_counted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                headers = MutableHeaders(scope=message)
                for name, value in SECURITY_HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        counted = scope["path"] not in _FREE
        # HEAD is GET without the body (RFC 9110, 9.3.2), which the protocol leaves out; load balancers probe with it.
        inner = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
        self._load.under_way += counted
        self._metrics.under_way.set(self._load.under_way)
        try:
            self._check(scope)
            await self._app(inner, receive, send_counted)
        except RequestError as failure:
            await _answer(failure, send_counted)
        finally:
            self._load.under_way -= counted
            self._metrics.under_way.set(self._load.under_way)
            method = scope["method"] if scope["method"] in ("GET", "HEAD", "POST") else "other"
            self._metrics.requests.labels(method, route, str(status)).inc()
            self._metrics.request_seconds.labels(route).observe(time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        if len(scope["query_string"]) > self._limits.query_bytes:
            raise unprocessable(
                "query_too_long", f"the query has more than {self._limits.query_bytes} bytes: send its values in a form"
            )
        if self._key_digest is not None and path.startswith("/v1/") and not self._has_key(headers):
            raise RequestError(
                401, "no_key", "this server wants an API key: send it as X-API-Key or as Authorization: Bearer",
                {"WWW-Authenticate": "Bearer"},
            )  # fmt: skip
        if path not in _FREE and self._load.under_way > self._limits.requests:
            raise busy(429, f"{self._limits.requests} requests are under way already: try again in a moment")
        length = headers.get("content-length", "0")
        if length.isdecimal() and int(length[:20]) > self._limits.body_bytes:
            raise body_too_large(self._limits.body_bytes)

    def _has_key(self, headers: Headers) -> bool:
        scheme, _, token = headers.get("authorization", "").partition(" ")
        given = headers.get("x-api-key") or (token.strip(" \t") if scheme.lower() == "bearer" else "")
        # Some clients send a key in UTF-8, others in Latin-1, as which every header is decoded here.
        forms = [given.encode("latin-1"), given.encode("utf-8")]
        # Digests have one length: the comparison tells nothing about the key, not even how long it is.
        return self._key_digest is not None and any(
            hmac.compare_digest(_digest(form), self._key_digest) for form in forms
        )


def _digest(key: bytes) -> bytes:
    return hashlib.sha256(key).digest()


async def _answer(failure: RequestError, send: Send) -> None:
    body = failure.body()
    headers = {"content-type": "application/json", "content-length": str(len(body))} | failure.headers
    await send(
        {
            "type": "http.response.start",
            "status": failure.status,
            "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        }
    )
    await send({"type": "http.response.body", "body": body})
