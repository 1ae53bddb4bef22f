"""How much one request, and all of them together, may ask of the server."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Limits:
    """Beyond any of these a request is refused with a status that says which."""

    body_bytes: int = 20_000_000
    """Largest request body (413)."""
    bodies_bytes: int = 100_000_000
    """Bodies of all requests that are under way, together (503)."""
    pixels: int = 16_000_000
    """Largest picture, width x height, read from its header before anything is decoded (413)."""
    names: int = 1_000
    """Most names a request (422)."""
    name_characters: int = 100
    """Longest name (422)."""
    detections: int = 300
    """Most detections a request (422)."""
    search_results: int = 100
    """Most regions a search (422)."""
    requests: int = 64
    """Most requests under way at once (429)."""
    query_bytes: int = 16_000
    """Longest query string (422)."""
    header_seconds: float = 10.0
    """A connection whose request line and headers take longer is answered 408 and closed."""
    body_seconds: float = 20.0
    """A body that takes longer to arrive is refused (408)."""
    request_seconds: float = 30.0
    """An answer that takes longer, once the body is here, is given up (504)."""
    shutdown_seconds: int = 30
    """How long requests under way may take to finish after SIGTERM."""
