"""The FastAPI application: routes and what they answer. All computing is the engine's, off the event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import torch
from fastapi import FastAPI
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from torch import Tensor

from ovbridge import __version__
from ovbridge.errors import OVBridgeError
from ovbridge.label_store.search import RegionHit
from ovbridge.serve import describe, schemas
from ovbridge.serve.batcher import MicroBatcher
from ovbridge.serve.engine import DetectJob, Engine, default_workers
from ovbridge.serve.failures import RequestError, busy, failure_body, unprocessable
from ovbridge.serve.guard import Guard, Load
from ovbridge.serve.metrics import CONTENT_TYPE, Metrics
from ovbridge.serve.page_files import page_files
from ovbridge.serve.parameters import read_asked, read_box
from ovbridge.serve.pictures import decode
from ovbridge.serve.regions import RegionSearch, crop_of
from ovbridge.serve.uploads import BodyBudget, Upload, read_upload
from ovbridge.structures import Detections

T = TypeVar("T")

DECODE_THREADS = 2


class Service:
    """The parts that the routes share: engine, queue, thread pools, counters."""

    def __init__(
        self,
        engine: Engine,
        *,
        search: RegionSearch | None = None,
        max_batch: int = 8,
        workers: int | None = None,
    ) -> None:
        self.engine, self.search, self.limits = engine, search, engine.limits
        self.metrics, self.load = Metrics(), Load()
        self.budget = BodyBudget(self.limits)
        self._decoding = ThreadPoolExecutor(DECODE_THREADS, "decode", initializer=_one_torch_thread)
        # One thread: text towers and stores gain nothing from several, and must not keep the decoders waiting.
        self._encoding = ThreadPoolExecutor(1, "encode", initializer=_one_torch_thread)
        self.batcher: MicroBatcher[DetectJob, Detections] = MicroBatcher(
            self._run,
            lambda job: engine.batch_key(job),
            max_batch=max_batch,
            max_waiting=self.limits.requests,
            workers=default_workers(engine.detector.model.device) if workers is None else workers,
            on_start=engine.enter_worker,
            on_batch=self.metrics.batch_size.observe,
        )
        self.ready = False

    async def start(self) -> None:
        """Run the model once, then answer /readyz with 200."""
        await self.batcher.submit(self.engine.first_job())
        self._encoding.submit(self.engine.preload_encoder)
        self.ready = True

    def close(self) -> None:
        """Finish what is queued and stop the threads."""
        self.ready = False
        self.batcher.close()
        self._decoding.shutdown(cancel_futures=True)
        self._encoding.shutdown(cancel_futures=True)

    async def decoding(self, function: Callable[..., T], *words: Any) -> T:
        """Run on a decoder thread."""
        return await asyncio.get_running_loop().run_in_executor(self._decoding, partial(function, *words))

    async def encoding(self, function: Callable[..., T], *words: Any, **options: Any) -> T:
        """Run on the encoder thread."""
        return await asyncio.get_running_loop().run_in_executor(self._encoding, partial(function, *words, **options))

    def _run(self, jobs: Sequence[DetectJob]) -> list[Detections]:
        started = time.perf_counter()
        found = self.engine.run(jobs)
        self.metrics.model_seconds.observe(time.perf_counter() - started)
        return found

    @asynccontextmanager
    async def within_time(self) -> AsyncIterator[None]:
        """Give up with 504 when an answer takes too long; what the user got wrong becomes 422."""
        try:
            async with asyncio.timeout(self.limits.request_seconds):
                yield
        except TimeoutError:
            raise RequestError(
                504, "too_slow", f"no answer within {self.limits.request_seconds:g} s: try again, or a smaller picture"
            ) from None
        except OVBridgeError as error:
            raise unprocessable("cannot_do", " ".join(str(error).split())[:500]) from None


def _one_torch_thread() -> None:
    """Of the calling thread alone: see `Engine.enter_worker`."""
    torch.set_num_threads(1)


def create_app(service: Service, *, api_key: str | None = None) -> FastAPI:
    """The application around a service; with `api_key`, /v1 wants it."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        await service.start()
        yield
        await asyncio.get_running_loop().run_in_executor(None, service.close)

    app = FastAPI(
        title="OVBridge",
        version=__version__,
        summary="Finds things by name in pictures.",
        docs_url=None,
        redoc_url=None,
        lifespan=lifespan,
        generate_unique_id_function=lambda route: route.name,
    )
    _add_detection(app, service, api_key)
    _add_health(app, service)
    if service.search is not None:
        _add_search(app, service, service.search, api_key)
    _add_page(app)
    _add_failures(app)
    routes = frozenset(route.path for route in app.routes if isinstance(route, APIRoute)) | {"/", "/docs"}
    app.add_middleware(
        Guard,
        limits=service.limits,
        metrics=service.metrics,
        load=service.load,
        routes=routes,
        api_key=api_key,
    )
    describe.finish(app, has_key=api_key is not None)
    return app


def _add_detection(app: FastAPI, service: Service, api_key: str | None) -> None:
    limits, engine = service.limits, service.engine
    refusals = describe.refusals(api_key is not None)

    @app.post(
        "/v1/detect", response_model=schemas.DetectAnswer, tags=["detect"], summary="Find things by name",
        responses=refusals, openapi_extra=describe.upload(schemas.DetectAsked, image_required=True),
    )  # fmt: skip
    async def detect(request: Request) -> Response:
        async with service.budget.body(request) as content, service.within_time():
            upload = await _read(service, request, content)
            asked = read_asked(schemas.DetectAsked, request.query_params.multi_items(), upload, limits)
            if upload.image is None:
                raise _no_image()
            picture = await service.decoding(engine.picture, upload.image)
            options = {"score_threshold": asked.threshold, "max_detections": asked.max_detections}
            if asked.names is None:
                wanted = engine.wanted(None, **options)  # type: ignore[arg-type]
            else:
                wanted = await service.encoding(engine.wanted, asked.names, **options)
            found = await service.batcher.submit(DetectJob(picture=picture, wanted=wanted))
        service.metrics.detections.inc(len(found))
        return _json(detect_answer(found, picture.original_hw))

    @app.post(
        "/v1/embed", response_model=schemas.EmbedAnswer, tags=["detect"], summary="Unit embeddings of texts and crops",
        responses=refusals, openapi_extra=describe.embed_upload(schemas.EmbedAsked),
    )  # fmt: skip
    async def embed(request: Request) -> Response:
        async with service.budget.body(request) as content, service.within_time():
            upload = await _read(service, request, content)
            asked = read_asked(schemas.EmbedAsked, request.query_params.multi_items(), upload, limits)
            if upload.image is None and not asked.names:
                raise unprocessable("nothing_to_embed", "give names, a picture as 'image', or both")
            if upload.image is None and asked.box is not None:
                raise unprocessable("no_image", "a box needs a picture: upload it as 'image'")
            rows: Sequence[Tensor] = ()
            if asked.names:
                rows = list(await service.encoding(engine.text_rows, asked.names))
            vector = None
            if upload.image is not None:
                crop = await service.decoding(_crop, upload.image, asked.box, limits.pixels)
                vector = (await service.encoding(engine.encoder.embed_crop, crop)).tolist()
        names = [
            schemas.NamedEmbedding(name=name, embedding=row.tolist())
            for name, row in zip(asked.names or (), rows, strict=True)
        ]
        dim = len(names[0].embedding) if names else len(vector or ())
        return _json(schemas.EmbedAnswer(encoder=engine.encoder.name, dim=dim, names=names, image=vector))

    @app.get(
        "/v1/vocabulary", tags=["detect"], summary="Names that the checkpoint stores",
        responses={401: refusals[401]} if api_key else {},
    )  # fmt: skip
    async def vocabulary() -> schemas.VocabularyAnswer:
        metadata = engine.detector.metadata
        return schemas.VocabularyAnswer(
            checkpoint=engine.checkpoint,
            stage=metadata.stage,
            names=[
                schemas.VocabularyName(name=str(record["name"]), role=str(record.get("role", "base")))
                for record in metadata.vocabulary
            ],
            text_encoder=metadata.text_encoder,
            templates=list(metadata.templates),
            search=service.search is not None,
            max_names=limits.names,
            max_body_bytes=limits.body_bytes,
            max_pixels=limits.pixels,
        )


def _add_search(app: FastAPI, service: Service, search: RegionSearch, api_key: str | None) -> None:
    limits = service.limits
    refusals = describe.refusals(api_key is not None)

    def answer(hits: Sequence[RegionHit], thumbnails: bool) -> schemas.SearchAnswer:
        return schemas.SearchAnswer(
            regions=[
                schemas.Region(
                    image=hit.image_key,
                    box_xyxy=[round(v, 2) for v in hit.box_xyxy],
                    similarity=round(hit.similarity, 4),
                    objectness=round(hit.objectness, 4),
                    thumbnail=search.thumbnail(hit) if thumbnails else None,
                )
                for hit in hits
            ]
        )

    @app.get(
        "/v1/search", response_model=schemas.SearchAnswer, tags=["search"], summary="Regions that a text describes",
        responses=refusals, openapi_extra={"parameters": schemas.query_parameters(schemas.TextSearchAsked)},
    )  # fmt: skip
    async def search_by_text(request: Request) -> Response:
        asked = read_asked(schemas.TextSearchAsked, request.query_params.multi_items(), Upload(), limits)
        async with service.within_time():
            hits = await service.encoding(search.by_text, asked.text, asked.top)
            return _json(await service.decoding(answer, hits, asked.thumbnails))

    @app.post(
        "/v1/search", response_model=schemas.SearchAnswer, tags=["search"], summary="Regions that look like a crop",
        responses=refusals, openapi_extra=describe.upload(schemas.CropSearchAsked, image_required=True),
    )  # fmt: skip
    async def search_by_crop(request: Request) -> Response:
        async with service.budget.body(request) as content, service.within_time():
            upload = await _read(service, request, content)
            asked = read_asked(schemas.CropSearchAsked, request.query_params.multi_items(), upload, limits)
            if upload.image is None:
                raise _no_image()
            crop = await service.decoding(_crop, upload.image, asked.box, limits.pixels)
            hits = await service.encoding(search.by_crop, crop, asked.top)
            return _json(await service.decoding(answer, hits, asked.thumbnails))


def _add_health(app: FastAPI, service: Service) -> None:
    @app.get("/healthz", tags=["health"], summary="The process answers")
    async def healthz() -> schemas.Health:
        return schemas.Health(status="ok")

    @app.get(
        "/readyz", tags=["health"], summary="The model is loaded and takes pictures",
        responses={503: {"model": schemas.Failure, "description": "Loading or shutting down"}},
    )  # fmt: skip
    async def readyz() -> schemas.Health:
        if not (service.ready and service.batcher.alive):
            raise busy(503, "the model is not ready, or the server is shutting down")
        return schemas.Health(status="ready")

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        service.metrics.waiting.set(service.batcher.waiting)
        return Response(service.metrics.exposition(), media_type=CONTENT_TYPE)


def _add_page(app: FastAPI) -> None:
    files = page_files()

    @app.get("/", include_in_schema=False)
    async def page(request: Request) -> Response:
        return files["index.html"].answer(request)

    @app.get("/docs", include_in_schema=False)
    async def docs(request: Request) -> Response:
        return files["docs.html"].answer(request)

    @app.get("/page/{name:path}", include_in_schema=False)
    async def page_file(request: Request, name: str) -> Response:
        if name not in files:
            raise RequestError(404, "not_found", "there is no such file")
        return files[name].answer(request)


def _add_failures(app: FastAPI) -> None:
    @app.exception_handler(RequestError)
    async def refused(request: Request, failure: RequestError) -> Response:
        return Response(failure.body(), failure.status, failure.headers, media_type="application/json")

    @app.exception_handler(HTTPException)
    async def not_routed(request: Request, error: HTTPException) -> Response:
        code = {404: "not_found", 405: "method_not_allowed"}.get(error.status_code, "refused")
        body = failure_body(error.status_code, code, f"{request.method} {request.url.path[:100]}: {error.detail}")
        return Response(body, error.status_code, error.headers, media_type="application/json")

    @app.exception_handler(Exception)
    async def broken(request: Request, error: Exception) -> Response:
        # The traceback goes to the log; the client is told nothing of the inside.
        return Response(
            failure_body(500, "internal", "the server failed at this request; its log says why"),
            500,
            media_type="application/json",
        )


async def _read(service: Service, request: Request, content: bytes) -> Upload:
    return await service.decoding(read_upload, content, request.headers.get("content-type", ""), service.limits)


def _crop(content: bytes, box: str | None, max_pixels: int) -> Any:
    pixels = decode(content, max_pixels)
    return crop_of(pixels, read_box(box, pixels.shape[1], pixels.shape[0]))


def _no_image() -> RequestError:
    return unprocessable("no_image", "there is no picture: upload it as the form's file 'image', or as the whole body")


def _json(answer: schemas.Answer) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def detect_answer(found: Detections, original_hw: tuple[int, int]) -> schemas.DetectAnswer:
    """Detections in the form of the API, as 'ovbridge detect --json' rounds them."""
    return schemas.DetectAnswer(
        width=original_hw[1],
        height=original_hw[0],
        names=list(found.names),
        detections=[
            schemas.Detection(name=name, score=round(score, 4), box_xyxy=[round(v, 2) for v in box])
            for name, score, box in zip(
                found.class_names, found.scores.tolist(), found.boxes_xyxy.tolist(), strict=True
            )
        ],
    )
