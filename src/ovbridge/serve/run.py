"""A server process: one socket, one event loop, and an end that finishes what was begun."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator

import uvicorn

from ovbridge.errors import ConfigError
from ovbridge.serve.app import Service, create_app
from ovbridge.serve.protocol import protocol_class

MAX_HEADER_BYTES = 1_000_000
"""Above what `Limits.query_bytes` allows, so that a long query is answered in the API's own form."""


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to `host`:`port` (0 takes a free one); raises ConfigError where that is not possible."""
    if not 0 <= port < 65536:
        raise ConfigError(f"--port is {port}: give a number from 0 to 65535")
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind, protocol)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except (OSError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ConfigError(f"cannot listen on {host}:{port} ({reason}): choose another --port or --host") from None
    bound.set_inheritable(True)
    return bound


def address_of(bound: socket.socket) -> str:
    """What to type into a browser."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def serve(
    service: Service, bound: socket.socket, *, api_key: str | None, on_ready: Callable[[], None], verbose: bool = False
) -> None:
    """Answer requests until SIGTERM or SIGINT; then finish those under way and return.

    Raises ConfigError where the application cannot start.
    """
    config = uvicorn.Config(
        create_app(service, api_key=api_key),
        http=protocol_class(service.limits),
        ws="none",
        lifespan="on",
        log_level="info" if verbose else "warning",
        access_log=verbose,
        server_header=False,
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        timeout_keep_alive=15,
        timeout_graceful_shutdown=service.limits.shutdown_seconds,
        backlog=256,
    )
    server = _Server(config, service, on_ready)
    with contextlib.suppress(SystemExit):  # How newer uvicorns say what older ones leave to `started`.
        server.run(sockets=[bound])
    if not server.started:
        raise ConfigError("the server did not start: the lines above say why")


class _Server(uvicorn.Server):
    """uvicorn's server, except that a signal is a normal end and not passed on once all is finished."""

    def __init__(self, config: uvicorn.Config, service: Service, on_ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._on_ready = service, on_ready

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.started:
            self._on_ready()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        before = {number: signal.signal(number, self._stop) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def _stop(self, number: int, frame: object) -> None:
        # A second Ctrl-C does not wait for the requests under way.
        self.force_exit = self.should_exit and number == signal.SIGINT
        self.should_exit = True
        self._service.ready = False
