"""One line of a batch's output for each row: coe's own format, or OpenAI's where the row came in that."""

from __future__ import annotations

import time
from typing import Any

import msgspec

from coe_cli.core.answers.answer import Answer
from coe_cli.errors import CoeError, from_code
from coe_cli.runtime.batch.batch_engine import RowFailure, RowResult
from coe_cli.runtime.batch.batch_index import RowHead
from coe_cli.runtime.server.http_errors import error_object, status_of
from coe_cli.runtime.server.openai_shapes import ChatShape, TextShape, chat_choice, head_fields, text_choice

_encode = msgspec.json.Encoder().encode


def output_line(head: RowHead, result: RowResult) -> bytes:
    """The row's line, with its end."""
    fields = _openai(head, result) if head.is_openai else _own(head, result)
    return _encode(fields) + b"\n"


def _own(head: RowHead, result: RowResult) -> dict[str, Any]:
    fields: dict[str, Any] = {"id": head.line if head.row_id is None else head.row_id, "line": head.line}
    answer = result.answer
    if answer is None:
        failure = _failure(result)
        error = {"code": failure.code, "message": failure.message, "hint": failure.hint}
        return fields | {"error": error, "expert": result.expert, "model": result.model or None}
    return fields | {
        "answer": answer.answer,
        **({"thinking": answer.thinking} if answer.thinking else {}),
        "expert": answer.expert,
        "model": answer.model,
        "finish_reason": answer.finish_reason,
        "usage": answer.usage,
        "timing": answer.timing,
        **({"warnings": answer.warnings} if answer.warnings else {}),
    }


def _openai(head: RowHead, result: RowResult) -> dict[str, Any]:
    """A failed request has both OpenAI's error body under its status and ``error``; a line that is none has no response."""
    fields: dict[str, Any] = {"id": f"batch_req_{head.line}", "custom_id": head.row_id}
    response: dict[str, Any] | None
    if result.answer is not None:
        body = _body(head, result.answer)
        response = {"status_code": 200, "request_id": body["id"], "body": body}
        return fields | {"response": response, "error": None}
    failure = _failure(result)
    response = None
    if failure.code != "invalid_row":
        problem: CoeError = from_code(failure.code, failure.message, failure.hint)
        problem.param = failure.param or None
        body = error_object(problem, "" if head.is_chat else "/v1/completions")
        response = {"status_code": status_of(problem), "request_id": f"req_{head.line}", "body": body}
    error = {"code": failure.code, "message": failure.message, "line": head.line}
    return fields | {"response": response, "error": error}


def _body(head: RowHead, answer: Answer) -> dict[str, Any]:
    shape: type[ChatShape] = ChatShape if head.is_chat else TextShape
    reason = "length" if answer.finish_reason == "length" else "stop"
    thoughts = answer.thinking
    choice = chat_choice(0, answer.answer, thoughts, reason) if head.is_chat else text_choice(0, answer.answer, reason)
    usage = answer.usage
    return {
        **head_fields(shape.name, f"{shape.prefix}batch-{head.line}", int(time.time()), answer.model),
        "choices": [choice],
        "usage": {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": usage.completion_tokens,
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "coe": {
            "expert": answer.expert,
            "model": answer.model,
            "load_s": answer.timing.load_s,
            "notes": answer.warnings,
        },
    }


def _failure(result: RowResult) -> RowFailure:
    assert result.failure is not None
    return result.failure
