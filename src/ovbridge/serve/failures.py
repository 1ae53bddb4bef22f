"""What a refused request is told: one JSON form for every status.

{"error": {"status": 413, "code": "body_too_large", "message": "..."}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping


class RequestError(Exception):
    """A request that is answered with an error; `code` is stable for programs, `message` is for people."""

    def __init__(self, status: int, code: str, message: str, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.code, self.message = status, code, message
        self.headers = dict(headers or {})

    def body(self) -> bytes:
        """The JSON form."""
        return failure_body(self.status, self.code, self.message)


def failure_body(status: int, code: str, message: str) -> bytes:
    """The JSON form of a failure."""
    return json.dumps({"error": {"status": status, "code": code, "message": message}}).encode()


def body_too_large(limit: int) -> RequestError:
    """413 for a body."""
    return RequestError(
        413, "body_too_large", f"the request body is larger than {limit / 1e6:g} MB: send a smaller picture"
    )


def busy(status: int, message: str) -> RequestError:
    """429 or 503 with the advice to come back."""
    code = "too_many_requests" if status == 429 else "unavailable"
    return RequestError(status, code, message, {"Retry-After": "1"})


def unprocessable(code: str, message: str) -> RequestError:
    """422: understood, but cannot be done as asked."""
    return RequestError(422, code, message)
