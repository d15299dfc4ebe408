"""OpenAI's responses, Anthropic's messages and Ollama's API: each request becomes a chat completion and is answered as one."""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar, cast

import msgspec
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from msgspec import structs
from pydantic import Field, ValidationError
from starlette.responses import Response

from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.runtime.college.chat_request import ChatRequest
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import RequestResolver, ResolvedRequest
from coe_cli.runtime.college.translation import to_prepare
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.server import openai_api as api
from coe_cli.runtime.server.block_shapes import MessagesShape, ResponsesShape
from coe_cli.runtime.server.constraints import Body, Checked, refuse_field
from coe_cli.runtime.server.embeddings import embed
from coe_cli.runtime.server.http_errors import HttpError, renamed
from coe_cli.runtime.server.ollama_models import listed, loaded, shown
from coe_cli.runtime.server.ollama_shapes import OllamaShape, now
from coe_cli.runtime.server.other_requests import AT, CountRequest, MessagesRequest, OllamaRequest, ResponsesRequest
from coe_cli.runtime.server.streaming import About, Shape

_MB = 2**20
_OLLAMA = "0.6.4"
"""The version whose API this is: clients ask for it."""
_KEPT = 256
_KEPT_BYTES = 16 * _MB

_Completion = TypeVar("_Completion", bound=api.ChatCompletionRequest | api.CompletionRequest)


class Answer(Protocol):
    """Answers requests in a shape, whole or in chunks; ``n`` answers to each, the likeliest of ``best_of``."""

    def __call__(
        self, asked: list[ChatRequest], shape: Shape, stream: bool, n: int = 1, best_of: int | None = None
    ) -> Awaitable[Response]: ...


class KeptResponses:
    """The last conversations of ``/v1/responses``, in memory, as the bytes of messages and the response."""

    def __init__(self) -> None:
        self._kept: OrderedDict[str, tuple[bytes, bytes]] = OrderedDict()

    def keep(self, response: dict[str, Any], messages: list[dict[str, Any]]) -> None:
        """Keep one, and let go of the oldest where there are too many."""
        encode = msgspec.json.encode
        self._kept[response["id"]] = encode(messages), encode(response)
        while len(self._kept) > _KEPT or sum(len(m) + len(r) for m, r in self._kept.values()) > _KEPT_BYTES:
            self._kept.popitem(last=False)

    def messages(self, name: str) -> list[dict[str, Any]]:
        """
        Raises:
            HttpError: it is not kept (404).
        """
        return list(msgspec.json.decode(self._found(name, "previous_response_id")[0]))

    def response(self, name: str) -> bytes:
        """
        Raises:
            HttpError: it is not kept (404).
        """
        return self._found(name, "response_id")[1]

    def forget(self, name: str) -> None:
        """
        Raises:
            HttpError: it is not kept (404).
        """
        self._found(name, "response_id")
        del self._kept[name]

    def _found(self, name: str, param: str) -> tuple[bytes, bytes]:
        kept = self._kept.get(name)
        if kept is None:
            raise HttpError(
                404, f"no response `{name[:64]}` is kept", "Send the conversation.", code="not_found", param=param
            )
        return kept


class _KeepingShape(ResponsesShape):
    """Keeps the conversation when it has been answered."""

    def __init__(self, request: dict[str, Any], kept: KeptResponses, messages: list[dict[str, Any]]) -> None:
        super().__init__(request)
        self._kept, self._messages = kept, messages

    def _response(self, about: About, items: list[dict[str, Any]], status: str | None) -> dict[str, Any]:
        response = super()._response(about, items, status)
        if status is None:
            (choice,) = about.choices
            calls = [{"id": c.id, "function": {"name": c.name, "arguments": c.arguments}} for c in choice.calls]
            said = {"role": "assistant", "content": choice.text or (None if calls else "")}
            spoken = [each for each in self._messages if each.get("role") not in ("system", "developer")]
            self._kept.keep(response, [*spoken, said | ({"tool_calls": calls} if calls else {})])
        return response


def _chat_request(
    request: ResponsesRequest | MessagesRequest | OllamaRequest,
    body: dict[str, Any],
    kind: type[api.ChatCompletionRequest | api.CompletionRequest] = api.ChatCompletionRequest,
) -> ChatRequest:
    """The one request of a completion, ``body``, that was made of another.

    Raises:
        RequestValidationError: as for a completion; or what the API has no place for is asked for.
    """

    def one(completion: api.Generation) -> None:
        if (name := completion.beside_one_answer()) is not None:
            raise refuse_field(name, "there is no place for it here; /v1/chat/completions tells it")

    completion = completion_of(body, request.names(), kind, one)
    return structs.replace(completion.chat_requests()[0], max_tokens=completion.most_tokens)


def completion_of(
    body: dict[str, Any],
    names: dict[str, str],
    kind: type[_Completion],
    check: Callable[[_Completion], None] = lambda completion: None,
) -> _Completion:
    """A completion that was made of something else; ``names``: what its fields are called there.

    Raises:
        RequestValidationError: as for a completion, or as ``check`` says.
    """
    try:
        completion = cast("_Completion", kind.model_validate(body))
        check(completion)
        return completion
    except ValidationError as error:
        found = error.errors(include_url=False)
        messages = body["messages"] if issubclass(kind, api.ChatCompletionRequest) else ()
        for number, message in enumerate(messages):
            names |= {f"messages.{number}.{name}".rstrip("."): at for name, at in message.get(AT, {}).items()}
        for each in found:
            each["loc"] = ("body", *renamed(api.field(each["loc"]), names).split("."))
        raise RequestValidationError(found) from None


def add_other_apis(app: FastAPI, college: College, resolver: RequestResolver, answer: Answer) -> None:
    """Add the endpoints to the application."""
    _add_responses(app, answer)

    @app.post("/v1/messages", operation_id="messages")
    async def messages(request: MessagesRequest) -> Response:
        """Anthropic's messages: text, thoughts and functions, whole or as events."""
        asked = _chat_request(request, request.chat())
        shape = MessagesShape()
        shape.names = request.names()
        return await answer([asked], shape, bool(request.stream))

    @app.post("/v1/messages/count_tokens", operation_id="count_tokens")
    async def count_tokens(request: CountRequest) -> dict[str, int]:
        """The tokens of a prompt that is not answered."""
        asked = _chat_request(request, request.chat())
        ask, told = await resolver.resolve(structs.replace(asked, resolve_only=True), college.loaded_models)
        tokens = told.prompt_tokens
        if tokens is None:  # it surely fits, so that nobody has counted it
            tokens = len((await own().prepared(to_prepare(ask, ask.model, told.context_length))).ids)
        return {"input_tokens": tokens}

    _add_ollama(app, college, resolver, answer)


def _add_responses(app: FastAPI, answer: Answer) -> None:
    kept = KeptResponses()

    @app.post("/v1/responses", operation_id="respond")
    async def respond(request: ResponsesRequest) -> Response:
        """OpenAI's responses. The last conversations are kept in memory for ``previous_response_id``."""
        earlier = kept.messages(request.previous_response_id) if request.previous_response_id else []
        body = request.chat(earlier)
        repeated = {
            "instructions": request.instructions,
            "previous_response_id": request.previous_response_id,
            "parallel_tool_calls": body.get("parallel_tool_calls", True),
            "tools": request.tools or [],
            "tool_choice": request.tool_choice or "auto",
            "temperature": body.get("temperature"),
            "top_p": body.get("top_p"),
            "max_output_tokens": request.max_output_tokens,
            "text": request.text or {"format": {"type": "text"}},
            "metadata": request.metadata or {},
        }
        asked = _chat_request(request, body)
        keeps = request.store is not False
        shape = _KeepingShape(repeated, kept, body["messages"]) if keeps else ResponsesShape(repeated)
        shape.names = request.names()
        return await answer([asked], shape, bool(request.stream))

    @app.get("/v1/responses/{response_id}", operation_id="response")
    async def response(response_id: str) -> Response:
        return Response(kept.response(response_id), media_type="application/json")

    @app.delete("/v1/responses/{response_id}", operation_id="forget")
    async def forget(response_id: str) -> dict[str, Any]:
        kept.forget(response_id)
        return {"id": response_id, "object": "response.deleted", "deleted": True}


class EmbedRequest(Checked):
    model: str = Field(min_length=1, max_length=256)
    input: str | list[str] = Field(default="", max_length=2048 * 1024)
    truncate: bool | None = Field(default=None, description="false: texts that are too long are refused and not cut")


class NameRequest(Body):
    model: str = Field(default="", max_length=256)
    name: str = Field(default="", max_length=256)
    stream: bool | None = None

    @property
    def asked(self) -> str:
        """
        Raises:
            HttpError: no model is named (400).
        """
        if not (self.model or self.name):
            raise HttpError(400, "no model is named", "Send one of /api/tags as `model`.", param="model")
        return _plain_name(self.model or self.name)


def _plain_name(name: str) -> str:
    """Ollama's clients add a tag where there is none."""
    return name.removesuffix(":latest")


def _add_ollama(app: FastAPI, college: College, resolver: RequestResolver, answer: Answer) -> None:
    async def ask(request: OllamaRequest, *, chat: bool) -> Response:
        if request.loads_only:
            return await _load_or_unload(request, college, resolver, chat=chat)
        body = request.body() | {"model": _plain_name(request.model)}
        shape = OllamaShape(request.model, chat=chat)
        shape.splits_thinking, shape.names = not request.plain, request.names()
        kind = api.CompletionRequest if "prompt" in body else api.ChatCompletionRequest
        return await answer([_chat_request(request, body, kind)], shape, request.stream is not False)

    @app.post("/api/chat", operation_id="ollama_chat")
    async def chat(request: OllamaRequest) -> Response:
        """Ollama's chat; in chunks unless ``stream`` is false."""
        return await ask(request, chat=True)

    @app.post("/api/generate", operation_id="ollama_generate")
    async def generate(request: OllamaRequest) -> Response:
        """Ollama's answer to one prompt; without one the model is loaded, or with ``keep_alive`` 0 taken out."""
        return await ask(request, chat=False)

    @app.get("/api/tags", operation_id="ollama_tags")
    async def tags() -> dict[str, Any]:
        return {"models": await asyncio.to_thread(lambda: listed(resolver.names()))}

    @app.post("/api/show", operation_id="ollama_show")
    async def show(request: NameRequest) -> dict[str, Any]:
        spec = await _spec(request.asked, resolver)
        return shown(request.asked, spec, resolver.models_dir / spec.name)

    @app.get("/api/ps", operation_id="ollama_ps")
    async def ps() -> dict[str, Any]:
        pool = college.snapshot()

        def read() -> list[dict[str, Any]]:
            return [loaded(each, resolver) for each in pool.models if each.state != "absent"]

        figures = {"usage_mb": round(pool.usage_mb), "pool_mb": pool.pool_mb, "queue_length": pool.queue_length}
        return {
            "models": await asyncio.to_thread(read),
            "coe": {"pressure": round(pool.pressure, 4), "level": pool.level, **figures},
        }

    @app.post("/api/pull", operation_id="ollama_pull")
    async def pull(request: NameRequest) -> Response:
        """That a model is there already. Nothing is downloaded because somebody asks over HTTP."""
        await _spec(request.asked, resolver)
        streams = request.stream is not False
        return Response(b'{"status":"success"}\n', media_type=f"application/{'x-ndjson' if streams else 'json'}")

    @app.post("/api/embed", operation_id="ollama_embed")
    async def embeddings(request: EmbedRequest) -> dict[str, Any]:
        name, cuts = _plain_name(request.model), request.truncate is not False
        found, notes = await asyncio.to_thread(embed, name, request.input, resolver.router, base64=False, cuts=cuts)
        vectors = [each["embedding"] for each in found["data"]]
        count = found["usage"]["prompt_tokens"]
        told = {"coe": {"notes": notes}} if notes else {}
        return {"model": request.model, "embeddings": vectors, "prompt_eval_count": count, **told}

    @app.get("/api/version", operation_id="ollama_version")
    async def version() -> dict[str, str]:
        return {"version": _OLLAMA}


async def _load_or_unload(
    request: OllamaRequest, college: College, resolver: RequestResolver, *, chat: bool
) -> Response:
    spec = await _spec(_plain_name(request.model), resolver)
    goes = request.keep_alive is not None and str(request.keep_alive).rstrip("smh") in ("0", "0.0")
    if goes:
        college.unload(spec.name)
    else:
        college.expect(spec)
    said: dict[str, Any] = {"message": {"role": "assistant", "content": ""}} if chat else {"response": ""}
    ended = {"done": True, "done_reason": "unload" if goes else "load"}
    body = {"model": request.model, "created_at": now(), **said, **ended}
    return Response(msgspec.json.encode(body), media_type="application/json")


async def _spec(name: str, resolver: RequestResolver) -> ModelSpec:
    return (await resolved(name, resolver)).ask.model


async def resolved(name: str, resolver: RequestResolver) -> ResolvedRequest:
    """The model that a name stands for: its own, the expert's, or for `auto` the general expert's.

    Raises:
        ModelMissing, ModelDamaged: there is none that answers.
    """
    return await resolver.resolve(ChatRequest([], name=name, route=False, resolve_only=True))
