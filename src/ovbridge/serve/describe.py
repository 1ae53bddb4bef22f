"""The OpenAPI description of what the routes read themselves: uploads, refusals, the key."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI

from ovbridge.serve import schemas
from ovbridge.serve.uploads import IMAGE_TYPES

_REASONS = {
    400: "The connection ended within the body",
    401: "The API key is missing or wrong",
    408: "The body arrived too slowly",
    413: "The body or the picture is too large",
    415: "The content type is not taken",
    422: "Understood, but it cannot be done as asked: the message says why",
    429: "Too many requests are under way",
    500: "The server failed",
    503: "Overloaded or shutting down",
    504: "No answer in time",
}


def refusals(has_key: bool) -> dict[int | str, dict[str, Any]]:
    """Every way in which a request can be refused."""
    return {
        status: {"model": schemas.Failure, "description": reason}
        for status, reason in _REASONS.items()
        if status != 401 or has_key
    }


def upload(asked: type[schemas.Asked], *, image_required: bool) -> dict[str, Any]:
    """A picture as a form's file or as the whole body, parameters in form or query."""
    picture = {"schema": {"type": "string", "format": "binary"}}
    form = {
        "schema": schemas.form_schema(asked, image_required=image_required),
        "encoding": {"image": {"contentType": ", ".join(IMAGE_TYPES)}},
    }
    return {
        "parameters": schemas.query_parameters(asked),
        "requestBody": {
            "required": image_required,
            "content": {"multipart/form-data": form, "image/jpeg": picture, "image/png": picture},
        },
    }


def embed_upload(asked: type[schemas.Asked]) -> dict[str, Any]:
    """As `upload`, and names alone as JSON."""
    described = upload(asked, image_required=False)
    described["requestBody"]["content"]["application/json"] = {
        "schema": {
            "type": "object",
            "properties": {"names": {"type": "array", "items": {"type": "string"}, "minItems": 1}},
            "required": ["names"],
            "additionalProperties": False,
        }
    }
    return described


def finish(app: FastAPI, *, has_key: bool) -> None:
    """Add the key to the description where the server wants one."""
    if not has_key:
        return
    described = app.openapi()
    described.setdefault("components", {})["securitySchemes"] = {
        "key": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
        "bearer": {"type": "http", "scheme": "bearer"},
    }
    for path, operations in described["paths"].items():
        if path.startswith("/v1/"):
            for operation in operations.values():
                operation["security"] = [{"key": []}, {"bearer": []}]
