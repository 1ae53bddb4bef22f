"""The OpenAPI description against the application: schemathesis sends what fits it and what does not."""

from __future__ import annotations

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from schemathesis.generation import GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from ovbridge.serve.app import Service, create_app
from ovbridge.serve.engine import Engine

# A schema cannot say which bytes are a picture, nor which names a text encoder knows: 422 is the answer to both.
NOT_APPLICABLE = [positive_data_acceptance]
# A form carries text: 3.5 sent as a name is the name "3.5", and one field is a list of one.
NOT_APPLICABLE_TO_FORMS = [*NOT_APPLICABLE, negative_data_rejection]

OPERATIONS = {"/v1/detect", "/v1/embed", "/v1/vocabulary", "/healthz", "/readyz"}


@pytest.fixture
def fresh_app(engine: Engine) -> FastAPI:
    """Not shared: schemathesis starts and ends it."""
    return create_app(Service(engine, workers=1))


def _check(app: FastAPI, mode: GenerationMode, examples: int) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", app)
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} == OPERATIONS
    for operation in operations:
        if mode is GenerationMode.NEGATIVE and not (operation.body or operation.query):
            continue

        @given(case=operation.as_strategy(generation_mode=mode))
        @settings(max_examples=examples, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
        def holds(case: schemathesis.Case) -> None:
            form = case.media_type == "multipart/form-data"
            case.call_and_validate(excluded_checks=NOT_APPLICABLE_TO_FORMS if form else NOT_APPLICABLE, timeout=120)

        holds()


@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_description_holds(fresh_app: FastAPI, mode: GenerationMode) -> None:
    _check(fresh_app, mode, examples=6)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [GenerationMode.POSITIVE, GenerationMode.NEGATIVE])
def test_description_holds_at_length(fresh_app: FastAPI, mode: GenerationMode) -> None:
    _check(fresh_app, mode, examples=200)
