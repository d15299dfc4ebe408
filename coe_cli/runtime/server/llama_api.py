"""llama.cpp's own endpoints over the same requests: ``/completion`` and ``/infill``, which editors ask."""

from __future__ import annotations

from fastapi import FastAPI
from msgspec import structs
from starlette.responses import Response

from coe_cli.runtime.server import openai_api as api
from coe_cli.runtime.server.llama_shapes import LlamaShape
from coe_cli.runtime.server.other_apis import Answer, completion_of
from coe_cli.runtime.server.other_requests import InfillRequest, LlamaRequest
from coe_cli.runtime.worker.protocol import ChatMessage

_NAMES = {"max_tokens": "n_predict", "logprobs": "n_probs"}


def add_llama_api(app: FastAPI, answer: Answer) -> None:
    """Add the endpoints to the application."""

    @app.post("/completion", operation_id="llama_completion")
    async def complete(request: LlamaRequest) -> Response:
        """Continue a text, or several, past the chat template."""
        completion = completion_of(request.completion(), _NAMES, api.CompletionRequest)
        asked = [structs.replace(each, max_tokens=completion.max_tokens) for each in completion.chat_requests()]
        return await answer(asked, LlamaShape(), bool(request.stream), completion.n or 1)

    @app.post("/infill", operation_id="llama_infill")
    async def infill(request: InfillRequest) -> Response:
        """Fill in what comes between two texts, with other files beside them."""
        completion = completion_of(request.completion() | {"prompt": "-"}, _NAMES, api.CompletionRequest)
        (asked,) = completion.chat_requests()
        asked = structs.replace(
            asked,
            messages=[ChatMessage(role, text) for role, text in request.turns()],
            fill=True,
            allow_special_tokens=bool(completion.allow_special_tokens),
            max_tokens=completion.max_tokens,
        )
        return await answer([asked], LlamaShape(), bool(request.stream), completion.n or 1)
