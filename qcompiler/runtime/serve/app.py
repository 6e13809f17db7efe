"""Executors by name -> an ASGI application of the Open Inference Protocol, version 2."""

from __future__ import annotations

import asyncio
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError
from contextlib import suppress
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from qcompiler.errors import Error
from qcompiler.runtime.executor import Closed, Executor, Full, Late, WorkerLost
from qcompiler.runtime.serve import metrics, protocol

BODY_SECONDS = 60.0
"""Seconds in which the body of a request must have arrived."""
_DISCARDED = 4
"""A body up to so many times the limit is read and thrown away, so that its client, which listens
only when all is sent, hears why it is refused.
"""
_JSON_BYTES = "inference-header-content-length"
_ENCODINGS = {"gzip": 31, "deflate": 15}
"""What zlib calls them."""
_GONE = 499
"""Nobody sees it: the client has left."""
_STATUS: Mapping[type[Exception], int] = {Full: 503, Closed: 503, Late: 504, WorkerLost: 500}

Handler = Callable[[Request], Awaitable[Response]]


class _Refusal(Error):
    """A request that is refused with a status of its own."""

    def __init__(self, status: int, what: str) -> None:
        super().__init__(what)
        self.status = status


class Application:
    """The handlers, and what they count. `draining` says whether the server is about to end."""

    def __init__(
        self,
        executors: Mapping[str, Executor],
        *,
        body_bytes: int,
        draining: Callable[[], bool] = lambda: False,
    ) -> None:
        self._executors, self._body_bytes, self.draining = executors, body_bytes, draining
        self._responses: Counter[int] = Counter()

    @property
    def asgi(self) -> Starlette:
        """What a server runs."""
        model = "/v2/models/{name}"
        routes = [
            self._route("/v2", self._server),
            self._route("/v2/health/live", self._live),
            self._route("/v2/health/ready", self._ready),
            self._route("/v2/repository/index", self._index, "POST"),
            self._route("/metrics", self._metrics),
        ]
        for place in (model, model + "/versions/{version}"):
            routes += [
                self._route(place, self._metadata),
                self._route(f"{place}/ready", self._model_ready),
                self._route(f"{place}/infer", self._infer, "POST"),
            ]
        return Starlette(routes=routes, exception_handlers={404: self._unknown, 405: self._unknown})

    def _route(self, path: str, handler: Handler, method: str = "GET") -> Route:
        async def counted(request: Request) -> Response:
            try:
                response = await handler(request)
            except Error as e:
                response = _refused(e)
            self._responses[response.status_code] += 1
            return response

        return Route(path, counted, methods=[method])

    async def _unknown(self, request: Request, error: Any) -> Response:
        self._responses[error.status_code] += 1
        return JSONResponse({"error": str(error.detail)}, error.status_code)

    async def _server(self, request: Request) -> Response:
        return JSONResponse(protocol.server())

    async def _live(self, request: Request) -> Response:
        return Response()

    async def _ready(self, request: Request) -> Response:
        return Response(status_code=503 if self.draining() else 200)

    async def _index(self, request: Request) -> Response:
        state = "UNAVAILABLE" if self.draining() else "READY"
        names = sorted(self._executors)
        return JSONResponse([{"name": n, "version": "1", "state": state} for n in names])

    async def _metrics(self, request: Request) -> Response:
        page = metrics.text(self._executors, self._responses)
        return PlainTextResponse(page, media_type=metrics.TYPE)

    async def _metadata(self, request: Request) -> Response:
        name, executor = self._model(request)
        any_batch = executor.options.max_batch > 0
        told = protocol.metadata(name, executor.inputs, executor.outputs, any_batch=any_batch)
        return JSONResponse(told)

    async def _model_ready(self, request: Request) -> Response:
        self._model(request)
        return await self._ready(request)

    def _model(self, request: Request) -> tuple[str, Executor]:
        name, version = request.path_params["name"], request.path_params.get("version", "1")
        executor = self._executors.get(name)
        if executor is None or version != "1":
            raise _Refusal(404, f"there is no model {name!r} of version {version}")
        return name, executor

    async def _infer(self, request: Request) -> Response:
        name, executor = self._model(request)
        if self.draining():
            raise _Refusal(503, "the server is about to end")
        body = await self._body(request)
        length = _json_bytes(request)
        ask = protocol.asked(body, length, executor.inputs, executor.outputs)
        running = asyncio.ensure_future(
            executor.arun(ask.inputs, priority=ask.priority, deadline_ms=ask.deadline_ms)
        )
        outputs = await _unless_gone(request, running)
        if outputs is None:
            return Response(status_code=_GONE)
        made = protocol.answered(name, ask, outputs)
        if made.json_bytes is None:
            return Response(made.body, media_type="application/json")
        headers = {"Inference-Header-Content-Length": str(made.json_bytes)}
        return Response(made.body, media_type="application/octet-stream", headers=headers)

    async def _body(self, request: Request) -> bytes:
        """All of a request's body, if it is not too long, and comes in time."""
        length = request.headers.get("content-length", "0")
        if length.isdecimal() and int(length) > _DISCARDED * self._body_bytes:
            raise self._too_long()
        found = bytearray()
        try:
            await asyncio.wait_for(self._received(request, found), BODY_SECONDS)
        except asyncio.TimeoutError as e:
            raise _Refusal(408, "the request is too slow") from e
        encoding = request.headers.get("content-encoding", "identity")
        if encoding == "identity":
            return bytes(found)
        if encoding not in _ENCODINGS:
            raise _Refusal(415, f"the encoding {encoding} is not supported")
        return self._decoded(bytes(found), _ENCODINGS[encoding])

    async def _received(self, request: Request, found: bytearray) -> None:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size <= self._body_bytes:
                found += part
            elif size > _DISCARDED * self._body_bytes:
                break
        if size > self._body_bytes:
            raise self._too_long()

    def _decoded(self, data: bytes, kind: int) -> bytes:
        decoder = zlib.decompressobj(kind)
        try:
            made = decoder.decompress(data, self._body_bytes + 1)
        except zlib.error as e:
            raise Error("the body is not encoded as it says") from e
        if len(made) > self._body_bytes:
            raise self._too_long()
        if not decoder.eof:
            raise Error("the body is not encoded as it says")
        return made

    def _too_long(self) -> Error:
        return _Refusal(413, f"the body has more than {self._body_bytes} bytes")


async def _unless_gone(request: Request, running: asyncio.Future[Any]) -> Any:
    """What comes of it; None, and it is cancelled, where the client leaves before."""
    left = asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait({running, left}, return_when=asyncio.FIRST_COMPLETED)
        if not running.done():
            running.cancel()
            with suppress(asyncio.CancelledError, CancelledError, Error):
                await running
            return None
        return running.result()
    finally:
        left.cancel()
        running.cancel()


async def _left(request: Request) -> None:
    """Until the client has left; its body was read before."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def _json_bytes(request: Request) -> int | None:
    text = request.headers.get(_JSON_BYTES)
    if text is None:
        return None
    if not text.isdecimal() or len(text) > 12:
        raise Error(f"{_JSON_BYTES}: a count wanted")
    return int(text)


def _refused(error: Error) -> Response:
    status = error.status if isinstance(error, _Refusal) else _STATUS.get(type(error), 400)
    headers = {"Retry-After": "1"} if status == 503 else {}
    return JSONResponse({"error": str(error)}, status, headers)
