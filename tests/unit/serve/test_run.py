"""The server process around the application."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from ovbridge.errors import ConfigError
from ovbridge.serve.app import Service
from ovbridge.serve.engine import Engine
from ovbridge.serve.run import listen, serve


def test_a_server_that_cannot_start_says_so(
    make_engine: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(make_engine())

    async def broken() -> None:
        raise RuntimeError("no memory for the model")

    monkeypatch.setattr(service, "start", broken)
    with pytest.raises(ConfigError, match="did not start"):
        serve(service, listen("127.0.0.1", 0), api_key=None, on_ready=lambda: pytest.fail("it is not ready"))
    service.close()
