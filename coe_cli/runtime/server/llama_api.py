"""llama.cpp's own endpoints: ``/completion`` and ``/infill`` over the same requests, its tokenizer, and what it tells of itself."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import FastAPI
from msgspec import structs
from pydantic import Field
from starlette.responses import Response

from coe_cli import __version__
from coe_cli.core.answers.limits import MAX_PROMPT_IDS
from coe_cli.core.models.model_spec import ModelSpec
from coe_cli.runtime.college.chat_request import AUTO
from coe_cli.runtime.college.college import College
from coe_cli.runtime.college.resolver import MAX_PROMPT_CHARS, RequestResolver
from coe_cli.runtime.college.translation import to_prepare
from coe_cli.runtime.model_folder.tokenizer_files import chat_template, special_tokens
from coe_cli.runtime.prompts.prompt_messages import RAW_TEMPLATE, Prepare
from coe_cli.runtime.prompts.prompts import own
from coe_cli.runtime.server import openai_api as api
from coe_cli.runtime.server.constraints import LONGEST_CONTEXT, Checked
from coe_cli.runtime.server.http_errors import HttpError
from coe_cli.runtime.server.llama_shapes import LlamaShape
from coe_cli.runtime.server.other_apis import Answer, completion_of, resolved
from coe_cli.runtime.server.other_requests import InfillRequest, LlamaRequest
from coe_cli.runtime.worker.protocol import ChatMessage

_Model = Annotated[str, Field(min_length=1, max_length=256)]


class TokenizeRequest(Checked):
    model: _Model = AUTO
    content: str = Field(max_length=MAX_PROMPT_CHARS)
    add_special: bool = Field(default=False, description="whether the token that begins a text is one of them")
    parse_special: bool = Field(default=True, description="whether what is spelled like a control token is one")
    with_pieces: bool = False


class DetokenizeRequest(Checked):
    model: _Model = AUTO
    tokens: Annotated[api.TokenIds, Field(max_length=MAX_PROMPT_IDS)]


class TemplateRequest(api.ChatCompletionRequest):
    """``POST /apply-template``."""

    model: _Model = AUTO


def add_llama_api(app: FastAPI, college: College, resolver: RequestResolver, answer: Answer) -> None:
    """Add the endpoints to the application."""

    @app.post("/completion", operation_id="llama_completion")
    async def complete(request: LlamaRequest) -> Response:
        """Continue a text, or several, past the chat template."""
        completion = completion_of(request.completion(), request.names(), api.CompletionRequest)
        asked = [structs.replace(each, max_tokens=completion.max_tokens) for each in completion.chat_requests()]
        candidates = completion.candidates()
        return await answer(asked, LlamaShape(request), bool(request.stream), completion.n or 1, candidates)

    @app.post("/infill", operation_id="llama_infill")
    async def infill(request: InfillRequest) -> Response:
        """Fill in what comes between two texts, with other files beside them."""
        completion = completion_of(request.completion() | {"prompt": "-"}, request.names(), api.CompletionRequest)
        (asked,) = completion.chat_requests()
        asked = structs.replace(
            asked,
            messages=[ChatMessage(role, text) for role, text in request.turns()],
            fill=True,
            allow_special_tokens=bool(completion.allow_special_tokens),
            max_tokens=completion.max_tokens,
        )
        candidates = completion.candidates()
        return await answer([asked], LlamaShape(request), bool(request.stream), completion.n or 1, candidates)

    @app.post("/tokenize", operation_id="tokenize")
    async def tokenize(request: TokenizeRequest) -> dict[str, Any]:
        """The tokens of a text: their ids, with ``with_pieces`` also what each stands for."""
        spec = (await resolved(request.model, resolver)).ask.model
        if not request.content:
            return {"tokens": []}
        asked = structs.replace(
            _prepare(spec, [ChatMessage("user", request.content)]),
            allow_special_tokens=request.parse_special,
            begins_text=request.add_special,
            back=request.with_pieces,
        )
        made = await own().prepared(asked)
        tokens = zip(made.ids, made.token_bytes, strict=False)
        return {"tokens": [{"id": n, "piece": _json_text(b)} for n, b in tokens] if made.token_bytes else made.ids}

    @app.post("/detokenize", operation_id="detokenize")
    async def detokenize(request: DetokenizeRequest) -> dict[str, str]:
        """The text of tokens."""
        spec = (await resolved(request.model, resolver)).ask.model
        if any(each >= spec.shape.vocab_size for each in request.tokens):
            raise HttpError(400, f"{spec.name} has {spec.shape.vocab_size} tokens", "They begin at 0.", param="tokens")
        if not request.tokens:
            return {"content": ""}
        made = await own().prepared(structs.replace(_prepare(spec, []), ids=request.tokens, back=True))
        return {"content": b"".join(made.token_bytes).decode("utf-8", "replace")}

    @app.post("/apply-template", operation_id="apply_template")
    async def apply_template(request: TemplateRequest) -> dict[str, str]:
        """The prompt that a conversation becomes, which is not answered."""
        (asked,) = request.chat_requests()
        asked = structs.replace(asked, route=False, resolve_only=True, allow_special_tokens=True)
        ask, told = await resolver.resolve(asked)
        made = await own().prepared(structs.replace(to_prepare(ask, ask.model, told.context_length), back=True))
        return {"prompt": made.rendered}

    _add_state(app, college, resolver)


def _add_state(app: FastAPI, college: College, resolver: RequestResolver) -> None:
    @app.get("/props", operation_id="llama_props")
    async def props(model: _Model = AUTO) -> dict[str, Any]:
        """What there is to know of a model."""
        ask, told = await resolved(model, resolver)
        spec, snapshot = ask.model, college.snapshot()
        folder = resolver.models_dir / spec.name
        template, special = await asyncio.to_thread(lambda: (chat_template(folder), special_tokens(folder)))
        loaded = next((each for each in snapshot.models if each.name == spec.name and each.state != "absent"), None)
        settings = {"n_ctx": told.context_length, "params": {"n_predict": ask.max_answer_tokens, "seed": -1}}
        return {
            "default_generation_settings": settings,
            "total_slots": loaded.max_slots if loaded is not None else snapshot.max_concurrent_slots,
            "model_alias": spec.name,
            "model_path": spec.name,
            "chat_template": template or "",
            "bos_token": special["bos_token"],
            "eos_token": special["eos_token"],
            "modalities": {"vision": False, "audio": False},
            "build_info": f"coe {__version__}",
            "is_sleeping": loaded is None,
        }

    @app.get("/slots", operation_id="llama_slots")
    async def slots(model: str = "", fail_on_no_slot: bool = False) -> list[dict[str, Any]]:
        """The slots of the loaded models: what each is writing, or that it is idle."""
        found = [
            slot
            for each in college.snapshot().models
            if model in ("", each.name)
            for slot in _slots(college, each.name, each.max_slots)
        ]
        if fail_on_no_slot and found and all(slot["is_processing"] for slot in found):
            raise HttpError(503, "no slot is idle", "Try again.", code="no_slot")
        return [{"id": number, **slot} for number, slot in enumerate(found)]


def _slots(college: College, model: str, count: int) -> list[dict[str, Any]]:
    context = college.workers().get(model, (None, None, None))[2]
    if context is None:
        return []
    of_all = {"model": model, "n_ctx": context, "speculative": False}
    busy = [
        {
            **of_all,
            "is_processing": True,
            "n_prompt_tokens": slot.prompt_tokens,
            "n_prompt_tokens_cache": slot.reused_tokens,
            "next_token": {"n_decoded": slot.completion_tokens},
        }
        for slot in college.slots(model)
    ]
    return busy + [{**of_all, "is_processing": False}] * (count - len(busy))


def _prepare(spec: ModelSpec, messages: list[ChatMessage]) -> Prepare:
    return Prepare(spec.name, str(spec.folder), messages, LONGEST_CONTEXT, RAW_TEMPLATE)


def _json_text(token: bytes) -> str | list[int]:
    """A token as llama.cpp tells it: its text, or its bytes where they are a part of a character."""
    try:
        return token.decode()
    except UnicodeDecodeError:
        return list(token)
