"""The FastAPI application behind /v1. Importing it takes as long as starting everything else, so the server does it late."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from coe_cli import __version__
from coe_cli.errors import CoeError
from coe_cli.runtime.college.answering import resolve
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import RequestResolver
from coe_cli.runtime.server import openai_answers as answers
from coe_cli.runtime.server import openai_api as api
from coe_cli.runtime.server.batch_api import add_batch_api
from coe_cli.runtime.server.batch_store import BatchStore
from coe_cli.runtime.server.embeddings import embed
from coe_cli.runtime.server.http_errors import HttpError, error_body, error_headers, name_field, status_of
from coe_cli.runtime.server.llama_api import add_llama_api
from coe_cli.runtime.server.ollama_models import written_at
from coe_cli.runtime.server.openai_shapes import ChatShape, TextShape
from coe_cli.runtime.server.other_apis import add_other_apis
from coe_cli.runtime.server.streaming import HttpAnswer, Shape, encode, note_header

_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"model": answers.ErrorAnswer, "description": text}
    for status, text in {
        400: "The request is malformed, asks for what is not supported, or is too long",
        401: "The API key is missing or wrong",
        403: "The Host header is not this server's, or the request comes from a web page",
        404: "No such model, or it is not on disk",
        413: "The body is too large",
        415: "The body is compressed",
        429: "The queue is full; see Retry-After",
        503: "The server is ending, or memory has run out; see Retry-After",
        504: "The model took too long to load",
    }.items()
}
_HTTP_ERRORS = {
    400: ("invalid_json", "the body is not JSON", "Send UTF-8, not too deep."),
    404: ("not_found", "there is nothing here", "See /openapi.json."),
    405: ("method_not_allowed", "the method is not for this address", "See /openapi.json."),
}
_STREAMS: dict[str, Any] = {"text/event-stream": {"schema": {"type": "string"}}}


class _Answer(Response):
    """Hands the channel over to an answer, so that its chunks pass through nothing else."""

    def __init__(self, answer: HttpAnswer) -> None:
        super().__init__()
        self._answer = answer

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self._answer(scope, receive, send)


def build_openai_app(college: College, resolver: RequestResolver, store: BatchStore) -> FastAPI:
    """The OpenAI-compatible endpoints over a college."""
    app = FastAPI(title="coe", version=__version__, docs_url=None, redoc_url=None, redirect_slashes=False)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(CoeError, _coe_error)

    async def answered(
        asked: list[ChatRequest], shape: Shape, stream: bool, n: int = 1, best_of: int | None = None
    ) -> Response:
        try:
            resolved = [await resolve(college, resolver, each) for each in asked]
        except CoeError as error:
            name_field(error, asked[0], shape.names)
            raise
        return _Answer(HttpAnswer(college, resolved, shape, stream=stream, n=n, best_of=best_of))

    async def answer(request: api.Generation, shape: ChatShape) -> Response:
        candidates = request.candidates()
        return await answered(request.chat_requests(), shape, bool(request.stream), request.n or 1, candidates)

    @app.post(
        "/v1/chat/completions",
        response_model=answers.ChatCompletion,
        responses={200: {"content": _STREAMS}, **_ERRORS},
        operation_id="chat",
    )
    async def chat(request: api.ChatCompletionRequest) -> Response:
        """Answer a conversation. Roles bring their system prompt, unless the conversation has one."""
        shape = ChatShape(request)
        shape.splits_thinking = request.reasoning_format != "none"
        return await answer(request, shape)

    @app.post(
        "/v1/completions",
        response_model=answers.TextCompletion,
        responses={200: {"content": _STREAMS}, **_ERRORS},
        operation_id="complete",
    )
    async def complete(request: api.CompletionRequest) -> Response:
        """Continue a text, past the model's chat template."""
        return await answer(request, TextShape(request))

    @app.get("/v1/models", responses=_ERRORS, operation_id="models")
    async def models() -> answers.ModelList:
        """Every name that a request may give as its model."""
        known = await asyncio.to_thread(resolver.names)
        return answers.ModelList(data=[_model_object(*each) for each in known.items()])

    @app.get("/v1/models/{name}", responses=_ERRORS, operation_id="model")
    async def model(name: str) -> answers.ModelObject:
        known = await asyncio.to_thread(resolver.names)
        if name not in known:
            resolver.refuse_unknown(name[:256], known)
        return _model_object(name, known[name])

    @app.post("/v1/embeddings", response_model=answers.EmbeddingList, responses=_ERRORS, operation_id="embeddings")
    async def embeddings(request: api.EmbeddingRequest) -> Response:
        """Vectors of length 1, from the embedder that routes questions."""
        base64, cuts = request.encoding_format == "base64", request.truncate_prompt_tokens is not None
        answer, notes = await asyncio.to_thread(
            embed, request.model, request.input, resolver.router, base64=base64, cuts=cuts
        )
        headers = {key.decode(): value.decode() for key, value in note_header(notes)}
        return Response(encode(answer), headers=headers, media_type="application/json")

    add_other_apis(app, college, resolver, answered)
    add_llama_api(app, college, resolver, answered)
    add_batch_api(app, store)
    return app


def _model_object(name: str, folder: Path | None) -> answers.ModelObject:
    return answers.ModelObject(id=name, created=(0 if folder is None else written_at(folder)) or 0)


def _response(error: CoeError, request: Request) -> Response:
    headers = {key.decode(): value.decode() for key, value in error_headers(error)}
    body = encode(error_body(error, request.url.path))
    return Response(body, status_of(error), headers=headers, media_type="application/json")


async def _coe_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, CoeError)
    return _response(error, request)


async def _invalid(request: Request, error: Exception) -> Response:
    """The first complaint of pydantic, with the place it concerns."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "json_invalid":
        where = f"{first['ctx']['error']}, character {first['loc'][-1]}"
        hint = "Send one JSON object, as UTF-8."
        return _response(HttpError(400, f"the body is not JSON ({where})", hint, code="invalid_json"), request)
    if not first["loc"][1:] and "json" not in request.headers.get("content-type", ""):
        hint = "Send it as JSON with the header Content-Type: application/json."
        return _response(HttpError(400, "the body has no type that is read here", hint, code="invalid_json"), request)
    place, reason = api.complaint(error.errors())
    message = f"`{place or 'body'}`: {reason}".encode("utf-8", "replace").decode()
    return _response(HttpError(400, message, code="invalid_value", param=place or None), request)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    code, message, hint = _HTTP_ERRORS.get(error.status_code, ("invalid_request", str(error.detail), ""))
    if error.status_code == 400 and "multipart" in request.headers.get("content-type", ""):
        code, message = "invalid_form", "the body is not multipart/form-data"
        hint = "Send the fields file and purpose, and the boundary between them in Content-Type."
    response = _response(HttpError(error.status_code, message, hint, code=code), request)
    response.headers.update(error.headers or {})
    return response
