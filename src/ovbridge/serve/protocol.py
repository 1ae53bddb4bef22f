"""HTTP/1.1 as uvicorn speaks it, with two rules for clients that are slow or do not stop.

A connection must deliver its request line and headers in time, and a body that was refused is thrown away unread
until the client has seen the answer: closing at once would reset the connection and lose it.
"""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from ovbridge.serve.failures import failure_body
from ovbridge.serve.limits import Limits

LINGER_SECONDS = 60.0
"""A client that still sends after its refusal is cut off then."""


def protocol_class(limits: Limits) -> type[asyncio.Protocol]:
    """The protocol of one connection, under `limits`."""

    class PatientProtocol(H11Protocol):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self._deadline: asyncio.TimerHandle | None = None
            self._discarding = False

        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._arm()

        def data_received(self, data: bytes) -> None:
            if self._discarding:
                return
            super().data_received(data)
            if self.conn.their_state is not h11.IDLE:
                self._disarm()
            elif self._deadline is None and self.timeout_keep_alive_task is None:
                self._arm()

        def connection_lost(self, exc: Exception | None) -> None:
            self._disarm()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            if self.conn.their_state is h11.SEND_BODY and not self.transport.is_closing():
                self._discard_rest()
                return
            super().on_response_complete()

        def shutdown(self) -> None:
            if self._discarding:
                self.transport.close()
                return
            super().shutdown()

        def _discard_rest(self) -> None:
            self.server_state.total_requests += 1
            self._discarding = True
            self.flow.resume_reading()
            if self.transport.can_write_eof():
                self.transport.write_eof()
            self._disarm()
            self._deadline = self.loop.call_later(LINGER_SECONDS, self.transport.abort)

        def _arm(self) -> None:
            self._deadline = self.loop.call_later(limits.header_seconds, self._too_late)

        def _disarm(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def _too_late(self) -> None:
            self._deadline = None
            if self.transport.is_closing():
                return
            if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
                message = f"the request's headers did not arrive within {limits.header_seconds:g} s"
                body = failure_body(408, "headers_too_slow", message)
                head = (
                    "HTTP/1.1 408 Request Timeout\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\nconnection: close\r\n\r\n"
                )
                self.transport.write(head.encode() + body)
            self.transport.close()

    return PatientProtocol
